"""The engine door: `AsyncLLM` in this process's care, for `themis worker`."""
