"""Where configuration comes from: a TOML file and its includes, then the environment over them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from themis_core.config.files import INCLUDE, RawConfig, leaves, read_file
from themis_core.config.problems import Place

__all__ = ["DEFAULTS", "FILE_NAME", "FILE_VARIABLE", "RawConfig", "leaves", "read"]

DEFAULTS = "built-in defaults"
FILE_NAME = "themis.toml"
FILE_VARIABLE = "THEMIS_CONFIG"
PREFIX = "THEMIS_"
SEPARATOR = "__"


def read(path: str | Path | None, environment: Mapping[str, str] | None = None) -> RawConfig:
    """Read the file (or `THEMIS_CONFIG`, or `./themis.toml` if there is one) and the environment.

    Raises `ConfigInvalid` if the file cannot be read or is no TOML.
    """
    environment = os.environ if environment is None else environment
    chosen = path or environment.get(FILE_VARIABLE)
    if chosen is None and Path(FILE_NAME).is_file():
        chosen = FILE_NAME
    raw = RawConfig({}, DEFAULTS) if chosen is None else read_file(Path(chosen))
    for name, text in sorted(environment.items()):
        if name.startswith(PREFIX) and name != FILE_VARIABLE:
            _override(raw, name, text)
    return raw


def _override(raw: RawConfig, name: str, text: str) -> None:
    """`THEMIS_SERVER__PORT=9000` sets `server.port`."""
    place = Place(f"environment variable {name}")
    if name == PREFIX + INCLUDE.upper():
        raw.wrong(place, INCLUDE, "cannot be set by the environment.", "Write it into the file.")
        return
    *tables, leaf = name.removeprefix(PREFIX).lower().split(SEPARATOR)
    table = raw.data
    key: list[str] = []
    for part in tables:
        key.append(_spelled(raw, table, part, place))
        inner = table.setdefault(key[-1], {})
        if not isinstance(inner, dict):
            inner = table[key[-1]] = {}
        table = inner
    key.append(_spelled(raw, table, leaf, place))
    table[key[-1]] = _parse(text)
    dotted = ".".join(key)
    raw.places[dotted], raw.texts[dotted] = place, text


def _spelled(raw: RawConfig, table: dict[str, Any], part: str, place: Place) -> str:
    """The key of the table that a variable means: `qwen2_5` is `Qwen2.5` if that is there."""
    if part in table:
        return part
    near = [name for name in table if re.sub(r"\W", "_", name.lower()) == part]
    if len(near) > 1:
        raw.wrong(place, part, f"may mean {' or '.join(map(repr, near))}.", "Rename one of them.")
    return near[0] if near else part


def _parse(text: str) -> Any:
    """A TOML value if it is one (numbers, booleans, lists), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
