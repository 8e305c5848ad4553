"""The tokenizer inside a GGUF file, as llama.cpp runs it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from themis_core.errors import BackendClosed, InvalidRequest
from themis_llamacpp.native import lib

_MAX_BYTES = 2**31 - 16  # llama.cpp counts bytes and tokens in 32 bits.


class LlamaTokenizer:
    """A `Tokenizer`. Only reads the model's vocabulary, so any thread may use it.

    `close` must be called before the model is freed: it waits for those who are still reading.
    """

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self.vocab_size: int = lib.llama_vocab_n_tokens(self._vocab)
        self._readers = 0
        self._closed = False
        self._changed = threading.Condition()
        self._pieces: list[bytes | None] = [None] * self.vocab_size
        self._special_tokens: Mapping[str, int] | None = None
        self._end_tokens = frozenset(
            token for token in range(self.vocab_size) if lib.llama_vocab_is_eog(self._vocab, token)
        )
        template = lib.llama_model_chat_template(model, None)
        self._chat_template = template.decode("utf-8", "replace") if template else None
        start = lib.llama_vocab_bos(self._vocab)
        wanted = start >= 0 and lib.llama_vocab_get_add_bos(self._vocab)
        self._start: int | None = start if wanted else None
        self._text_end = self._ending()
        self._bos = self._text(start)
        self._eos = self._text(lib.llama_vocab_eos(self._vocab))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Everything that the model file calls an end of generation."""
        return self._end_tokens

    @property
    def text_end(self) -> tuple[int, ...]:
        """What follows a text that is embedded: a separator (encoders), or the end of text."""
        return self._text_end

    @property
    def chat_template(self) -> str | None:
        """The template in the file."""
        return self._chat_template

    @property
    def template_tokens(self) -> dict[str, str]:
        """`bos_token` and `eos_token`, empty where the model has none."""
        return {"bos_token": self._bos, "eos_token": self._eos}

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens, and others that stand for nothing, by their text."""
        if self._special_tokens is None:
            # Asking for the bytes of a whole vocabulary would take a second; those of ordinary
            # tokens are known not to be empty. Two threads may both do it; they get the same.
            with self._reading():
                ordinary = lib.LLAMA_TOKEN_ATTR_NORMAL | lib.LLAMA_TOKEN_ATTR_BYTE
                candidates = [
                    token
                    for token in range(self.vocab_size)
                    if not lib.llama_vocab_get_attr(self._vocab, token) & ordinary
                ]
                texts = {self._text(token): token for token in candidates}
            found = {t: i for t, i in texts.items() if t and not self.token_bytes(i)}
            self._special_tokens = MappingProxyType(found)
        return self._special_tokens

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids; the start token is added if the model wants one and the text has none.

        Raises `InvalidRequest` for text with lone surrogates, or with too many tokens to count.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise _invalid("holds a lone surrogate, so it is not valid Unicode") from error
        if len(data) > _MAX_BYTES:
            raise _invalid(f"of {len(data):,} bytes is too long to be tokenised")
        ids = self._encode(data, parse_special)
        # A template may have written the start token already. llama.cpp is not asked to add it,
        # because it would add an end token too where the file says so, and the prompt would end.
        if self._start is None or (parse_special and ids[:1] == [self._start]):
            return ids
        return [self._start, *ids]

    def _encode(self, data: bytes, parse_special: bool) -> list[int]:
        size = len(data) + 8
        with self._reading():
            while True:
                ids = (ctypes.c_int * size)()
                count = lib.llama_tokenize(
                    self._vocab, data, len(data), ids, size, False, parse_special
                )
                if count >= 0:
                    return ids[:count]
                if -count <= size:  # An overflow, not a wish for more room.
                    raise _invalid("has too many tokens")
                size = -count  # That many are needed.

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; none for control tokens and ids that the vocabulary lacks."""
        if not 0 <= token_id < self.vocab_size:  # llama.cpp would end the process.
            return b""
        piece = self._pieces[token_id]
        if piece is None:
            # Two threads may both compute it; they get the same.
            piece = self._pieces[token_id] = self._piece(token_id)
        return piece

    def _piece(self, token_id: int) -> bytes:
        size = 64
        with self._reading():
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = lib.llama_token_to_piece(self._vocab, token_id, buffer, size, 0, False)
                if count >= 0:
                    return buffer.raw[:count]
                size = -count

    def close(self) -> None:
        """Refuse new readers and wait for the others; then the vocabulary may be freed."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._readers == 0)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._changed:
            if self._closed:
                raise BackendClosed("The model has been closed.", plugin="llamacpp")
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    def _ending(self) -> tuple[int, ...]:
        if lib.llama_vocab_get_add_sep(self._vocab):
            end = lib.llama_vocab_sep(self._vocab)
        elif lib.llama_vocab_get_add_eos(self._vocab):
            end = lib.llama_vocab_eos(self._vocab)
        else:
            return ()
        return (end,) if end >= 0 else ()

    def _text(self, token_id: int) -> str:
        if token_id < 0:
            return ""
        text = lib.llama_vocab_get_text(self._vocab, token_id)
        return text.decode("utf-8", "replace") if text else ""


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"The text {what}.", field="prompt", plugin="llamacpp")
