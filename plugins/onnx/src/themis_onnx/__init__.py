"""ONNX Runtime as a `ModelRunner`, for generation and for embeddings."""
