"""A tokenizer whose markers, such as `<tool_call>`, count as special tokens.

llguidance inside vLLM makes its vocabulary from `tokenizer.json`, and takes every added token that
is written in angle brackets for a special one, which no text can produce. Grammars that go there
name such a token by its id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from themis_engine.runner import Tokenizer

_MARKER = re.compile(rb"<[^<>\s]{1,60}>")


class MarkedTokenizer:
    """As the tokenizer that it is made of, but for `special_tokens`."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        markers = {}
        for token in range(vocab_size):
            text = tokenizer.token_bytes(token)
            if text[:1] == b"<" and _MARKER.fullmatch(text):
                markers[text.decode("utf-8", "replace")] = token
        self._special_tokens = markers | dict(tokenizer.special_tokens)

    @property
    def end_tokens(self) -> frozenset[int]:
        """As they are."""
        return self._tokenizer.end_tokens

    @property
    def chat_template(self) -> str | None:
        """As it is."""
        return self._tokenizer.chat_template

    @property
    def template_tokens(self) -> dict[str, str]:
        """As they are."""
        return self._tokenizer.template_tokens

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """With the markers."""
        return self._special_tokens

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """As it is."""
        return self._tokenizer.encode(text, parse_special=parse_special)

    def token_bytes(self, token_id: int) -> bytes:
        """As they are."""
        return self._tokenizer.token_bytes(token_id)
