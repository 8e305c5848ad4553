"""llama.cpp as a `ModelRunner`: through llama-cpp-python's low-level API."""
