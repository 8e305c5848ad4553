"""llama.cpp as a Themis backend. Importing this package does not import llama.cpp."""
