"""The simplest tokenizer there is: every byte is a token. For custom models and for tests."""

from __future__ import annotations


class ByteTokenizer:
    """Token ids 0 to 255 are bytes, 256 ends a generation. The vocabulary has 257 tokens."""

    VOCAB_SIZE = 257
    END = 256

    def __init__(self, chat_template: str | None = None) -> None:
        self._chat_template = chat_template

    @property
    def end_tokens(self) -> frozenset[int]:
        """The one end token."""
        return frozenset({self.END})

    @property
    def chat_template(self) -> str | None:
        """As given."""
        return self._chat_template

    @property
    def template_tokens(self) -> dict[str, str]:
        """None: no special token has a text."""
        return {}

    @property
    def special_tokens(self) -> dict[str, int]:
        """None: the end token has no text."""
        return {}

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """The UTF-8 bytes of the text."""
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        """The byte, or nothing for the end token."""
        return bytes([token_id]) if token_id < self.END else b""
