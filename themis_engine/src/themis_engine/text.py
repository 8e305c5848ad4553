"""From token bytes to text that can be sent: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs


class TextStream:
    """The text of one answer, released piece by piece.

    Text is held back while it could still become part of a character or of a stop string. The
    result does not depend on how the bytes were cut into tokens: generation stops at the match
    that *ends* first (the longest of several that end there), and the text ends where it begins.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.matched: str | None = None

    def push(self, data: bytes) -> str:
        """Take the bytes of one token, return the text that may be sent now.

        After a match, `matched` is the stop string, and everything else is dropped.
        """
        if self.matched is not None:
            return ""
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """The rest, when no more tokens come. Bytes that are no character become U+FFFD."""
        if self.matched is not None:
            return ""
        released = self._release(self._decoder.decode(b"", final=True))
        if self.matched is None:
            released += self._held
        self._held = ""
        return released

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        buffer = self._held + text
        match = _first_match(buffer, self._stop)
        if match is not None:
            start, self.matched = match
            self._held = ""
            return buffer[:start]
        keep = _possible_start(buffer, self._stop)
        self._held = buffer[keep:]
        return buffer[:keep]


def _first_match(text: str, stop: tuple[str, ...]) -> tuple[int, str] | None:
    """Start and stop string of the match that ends first, the longest of those."""
    matches = [(text.find(s) + len(s), text.find(s), s) for s in stop if s in text]
    if not matches:
        return None
    _, start, found = min(matches)
    return start, found


def _possible_start(text: str, stop: tuple[str, ...]) -> int:
    """Where the longest suffix of `text` begins that a stop string could begin with."""
    longest = max(len(s) for s in stop) - 1
    for start in range(max(0, len(text) - longest), len(text)):
        suffix = text[start:]
        if any(s.startswith(suffix) for s in stop):
            return start
    return len(text)
