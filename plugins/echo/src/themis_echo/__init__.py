"""The backend that answers with its prompt. Copy its shape for a backend of your own."""
