"""The HTTP door: vLLM's OpenAI-compatible server, through aiohttp."""
