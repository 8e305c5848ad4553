"""The gRPC door: vLLM's own service."""
