"""A front door for Themis: the HTTP API that clients of OpenAI speak."""
