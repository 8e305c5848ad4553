"""One thing that is wrong in a configuration, and the list that collects them all."""

from __future__ import annotations

from typing import Any

import msgspec

from themis_core.suggest import did_you_mean


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong at one key. `key` is dotted; `source` is the file or environment variable."""

    source: str
    key: str
    message: str
    remedy: str | None = None

    def __str__(self) -> str:
        where = f"{self.source}: {self.key}" if self.key else self.source
        return f"{where}: {self.message}" + (f" {self.remedy}" if self.remedy else "")


class Problems:
    """Collects problems; `origins` tells which source a key came from."""

    def __init__(self, origins: dict[str, str], default_source: str) -> None:
        self._origins = origins
        self._default_source = default_source
        self.found: list[Problem] = []

    def add(self, key: str, message: str, remedy: str | None = None) -> None:
        """Note a problem at a dotted key."""
        self.found.append(
            Problem(source=self._source(key), key=key, message=message, remedy=remedy)
        )

    def unknown_key(self, key: str, known: list[str]) -> None:
        """Note a key that nobody declares."""
        name = key.rpartition(".")[2]
        remedy = did_you_mean(name, known) or f"Known here: {', '.join(sorted(known)) or 'none'}."
        self.add(key, "unknown key.", remedy)

    def _source(self, key: str) -> str:
        if key in self._origins:
            return self._origins[key]
        inside = [o for k, o in self._origins.items() if k.startswith(f"{key}.")]
        return inside[0] if inside else self._default_source


def shown(value: Any) -> str:
    """A value in an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
