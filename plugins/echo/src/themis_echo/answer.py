"""The answer itself: tokens are the bytes of UTF-8, and deltas are words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from themis_core.messages import Delta, Finished

END = 0
VOCABULARY = 257  # the end token, and 256 bytes

_WORD = re.compile(r"\s*\S+|\s+")


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text: each byte plus one. Lone surrogates become question marks."""
    return tuple(byte + 1 for byte in text.encode("utf-8", "replace"))


def decode(token_ids: Sequence[int]) -> str:
    """The text of token ids; the end token has none, broken characters become U+FFFD."""
    return bytes(token - 1 for token in token_ids if token != END).decode("utf-8", "replace")


class Answer(msgspec.Struct, frozen=True):
    """A whole answer: the visible text, all tokens behind it, and why it ends."""

    text: str
    token_ids: tuple[int, ...]
    end: Finished

    def deltas(self) -> Iterator[Delta]:
        """Word by word; what has no text (a stop string, the end token) comes last."""
        start = 0
        for word in _WORD.findall(self.text):
            stop = start + len(word.encode())
            yield Delta(text=word, token_ids=self.token_ids[start:stop])
            start = stop
        if self.token_ids[start:]:
            yield Delta(token_ids=self.token_ids[start:])


def make_answer(token_ids: tuple[int, ...], limit: int, stop: Sequence[str]) -> Answer:
    """Answer with these tokens, at most `limit` of them, ended by whichever stop comes first."""
    said = token_ids[:limit]
    text = decode(said)
    # The match that ends first is the one that a model, writing on, would meet first.
    matches = [(text.find(s) + len(s), text.find(s), s) for s in stop if s in text]
    if matches:
        after, before, matched = min(matches)
        used = len(text[:after].encode())
        return Answer(text[:before], said[:used], Finished(reason="stop", matched=matched))
    if len(token_ids) >= limit:
        return Answer(text, said, Finished(reason="length"))
    return Answer(text, (*said, END), Finished(reason="stop"))
