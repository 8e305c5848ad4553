"""Finding where JSON ends, while it is being written."""

from __future__ import annotations

import json
import re

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_OF_INTEREST = re.compile(r'[\\"{}\[\]]')


class ObjectScanner:
    """Finds the end of an object whose text comes in pieces."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """Where in `text`, the next piece, the object has ended; None if it goes on."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = _OF_INTEREST.search(text, at)
            if found is None:
                return None
            at = found.end()
            sign = found[0]
            if sign == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._escaped = sign == "\\"
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at
        return None


def members(text: str) -> dict[str, str]:
    """The members of a JSON object, their values as they are written. Raises `ValueError`."""
    found: dict[str, str] = {}
    at = _past(text, 0, "{")
    while text[at : at + 1] != "}":
        if found:
            at = _past(text, at, ",")
        key, at = _DECODER.raw_decode(text, at)
        if not isinstance(key, str):
            raise ValueError("a key is no string")
        start = _past(text, at, ":")
        _, end = _DECODER.raw_decode(text, start)
        found[key] = text[start:end]
        at = _past(text, end, "")
    return found


def _past(text: str, at: int, sign: str) -> int:
    """Behind a sign and the space around it."""
    at = _space(text, at)
    if not text.startswith(sign, at):
        raise ValueError(f"no {sign!r} at {at}")
    return _space(text, at + len(sign))


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()
