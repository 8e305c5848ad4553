"""The tokenizer inside a GGUF file, as llama.cpp runs it."""

from __future__ import annotations

import ctypes
from typing import Any

from themis_llamacpp.native import lib


class LlamaTokenizer:
    """A `Tokenizer`. Only reads the model's vocabulary, so any thread may use it."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self.vocab_size: int = lib.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.vocab_size
        self._end_tokens = frozenset(
            token for token in range(self.vocab_size) if lib.llama_vocab_is_eog(self._vocab, token)
        )
        template = lib.llama_model_chat_template(model, None)
        self._chat_template = template.decode("utf-8", "replace") if template else None
        self._bos = self._text(lib.llama_vocab_bos(self._vocab))
        self._eos = self._text(lib.llama_vocab_eos(self._vocab))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Everything that the model file calls an end of generation."""
        return self._end_tokens

    @property
    def chat_template(self) -> str | None:
        """The template in the file."""
        return self._chat_template

    @property
    def template_tokens(self) -> dict[str, str]:
        """`bos_token` and `eos_token`, empty where the model has none."""
        return {"bos_token": self._bos, "eos_token": self._eos}

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids; the start token is added if the model wants one and the text has none."""
        data = text.encode()
        # A template may have written the start token already.
        add = not (parse_special and self._bos and text.startswith(self._bos))
        size = len(data) + 8
        while True:
            ids = (ctypes.c_int * size)()
            count = lib.llama_tokenize(self._vocab, data, len(data), ids, size, add, parse_special)
            if count >= 0:
                return ids[:count]
            size = -count  # That many are needed.

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; none for control tokens."""
        piece = self._pieces[token_id]
        if piece is None:
            # Two threads may both compute it; they get the same.
            piece = self._pieces[token_id] = self._piece(token_id)
        return piece

    def _piece(self, token_id: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(self._vocab, token_id, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _text(self, token_id: int) -> str:
        if token_id < 0:
            return ""
        text = lib.llama_vocab_get_text(self._vocab, token_id)
        return text.decode("utf-8", "replace") if text else ""
