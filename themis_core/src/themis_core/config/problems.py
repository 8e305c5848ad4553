"""One thing that is wrong in a configuration, and the list that collects them all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from themis_core.suggest import did_you_mean

HIDDEN = "(hidden)"

_LAST_PART = re.compile(r"(?:\[\d+\]|\.?[^.\[\]]*)$")


class Place(msgspec.Struct, frozen=True):
    """Where a value was set: a file, with the line, or an environment variable."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong at one key, and what was expected.

    `key` is dotted; `source` is the file or environment variable, `line` counts from 1. `value` is
    what was found, shortened, and `(hidden)` where it may be a secret.
    """

    source: str
    key: str
    message: str
    line: int | None = None
    value: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        place = str(Place(self.source, self.line))
        where = f"{place}: {self.key}" if self.key else place
        return f"{where}: {self.message}" + (f" {self.remedy}" if self.remedy else "")


class Problems:
    """Collects problems; `places` tells where a key was set, `texts` what a variable says."""

    def __init__(
        self,
        places: Mapping[str, Place],
        default_source: str,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.texts = texts or {}
        self._places = places
        self._default = Place(default_source)
        self.found: list[Problem] = []

    def add(
        self, key: str, message: str, remedy: str | None = None, value: str | None = None
    ) -> None:
        """Note a problem at a dotted key."""
        place = self._place(key)
        self.found.append(
            Problem(
                source=place.source,
                line=place.line,
                key=key,
                message=message,
                value=value,
                remedy=remedy,
            )
        )

    def unknown_key(self, key: str, known: list[str]) -> None:
        """Note a key that nobody declares. Its value is not told: it may be a misspelt secret."""
        name = key.rpartition(".")[2]
        remedy = did_you_mean(name, known) or f"Known here: {', '.join(sorted(known)) or 'none'}."
        self.add(key, "unknown key.", remedy)

    def _place(self, key: str) -> Place:
        """Where the key is, or what is in it, or the nearest table around it."""
        if key in self._places:
            return self._places[key]
        for known, place in self._places.items():
            if known.startswith((f"{key}.", f"{key}[")):
                return place
        while key:
            shorter = _LAST_PART.sub("", key, count=1)
            key = shorter if len(shorter) < len(key) else key[:-1]  # "]" may be in a name.
            if key in self._places:
                return self._places[key]
        return self._default


def dotted(path: Iterable[str | int]) -> str:
    """A key as problems write it: `models.a.peers[0].host`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def shown(value: Any) -> str:
    """A value in an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
