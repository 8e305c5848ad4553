"""vLLM as a backend: over its HTTP or gRPC server, or its engine in a Themis worker."""
