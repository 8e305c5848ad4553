"""Where configuration comes from: one TOML file, then environment variables over it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from themis_core.config.problems import Problem
from themis_core.errors import ConfigInvalid

FILE_NAME = "themis.toml"
FILE_VARIABLE = "THEMIS_CONFIG"
PREFIX = "THEMIS_"
SEPARATOR = "__"


class RawConfig:
    """Unchecked data. `origins` maps each dotted leaf key to the source that set it."""

    def __init__(self, data: dict[str, Any], source: str) -> None:
        self.data = data
        self.source = source
        self.origins = dict.fromkeys((key for key, _ in leaves(data)), source)


def read(path: str | Path | None, environment: Mapping[str, str] | None = None) -> RawConfig:
    """Read the file (or `THEMIS_CONFIG`, or `./themis.toml` if there is one) and the environment.

    Raises `ConfigInvalid` if the file cannot be read or is no TOML.
    """
    environment = os.environ if environment is None else environment
    chosen = path or environment.get(FILE_VARIABLE)
    if chosen is None and Path(FILE_NAME).is_file():
        chosen = FILE_NAME
    raw = RawConfig({}, "built-in defaults") if chosen is None else _read_file(Path(chosen))
    for name, text in sorted(environment.items()):
        if name.startswith(PREFIX) and name != FILE_VARIABLE:
            _override(raw, name, text)
    return raw


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no table."""
    for name, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_file(path: Path) -> RawConfig:
    try:
        return RawConfig(tomllib.loads(path.read_text("utf-8")), str(path))
    except FileNotFoundError as error:
        raise _unreadable(path, "the file does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"the file cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise _unreadable(path, f"not valid TOML: {error}.") from error


def _unreadable(path: Path, message: str) -> ConfigInvalid:
    problem = Problem(source=str(path), key="", message=message)
    return ConfigInvalid("The configuration cannot be used:", problems=(problem,))


def _override(raw: RawConfig, name: str, text: str) -> None:
    """`THEMIS_SERVER__PORT=9000` sets `server.port`."""
    *tables, leaf = name.removeprefix(PREFIX).lower().split(SEPARATOR)
    table = raw.data
    for part in tables:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = table[part] = {}
        table = inner
    table[leaf] = _parse(text)
    raw.origins[".".join([*tables, leaf])] = f"environment variable {name}"


def _parse(text: str) -> Any:
    """A TOML value if it is one (numbers, booleans, lists), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
