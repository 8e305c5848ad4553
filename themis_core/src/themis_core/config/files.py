"""Configuration files: TOML, with the line of every key, and the files that a file includes."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from themis_core.config.locate import locate
from themis_core.config.problems import Place, Problem, dotted, shown
from themis_core.errors import ConfigInvalid

INCLUDE = "include"
_WILDCARDS = "*?["


class RawConfig:
    """Unchecked data. `places` maps each dotted key to where it was set.

    `texts` are values of environment variables as they were written, by key. `files` are those
    that were read, and `problems` what was wrong with reading them.
    """

    def __init__(
        self, data: dict[str, Any], source: str, places: dict[str, Place] | None = None
    ) -> None:
        self.data = data
        self.source = source
        self.places = {key: Place(source) for key, _ in leaves(data)} if places is None else places
        self.texts: dict[str, str] = {}
        self.files: list[Path] = []
        self.problems: list[Problem] = []

    def wrong(self, place: Place, key: str, message: str, remedy: str | None = None) -> None:
        """Note a problem."""
        self.problems.append(
            Problem(source=place.source, line=place.line, key=key, message=message, remedy=remedy)
        )


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is no table."""
    for name, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read_file(path: Path) -> RawConfig:
    """A file and all that it includes. Raises `ConfigInvalid` if the file itself is unreadable."""
    raw = _parse(path)
    _include(raw, path, raw.data.pop(INCLUDE, []), raw.places.get(INCLUDE), (path.resolve(),))
    return raw


def _parse(path: Path) -> RawConfig:
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError as error:
        raise _unreadable(path, "the file does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"the file cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise _unreadable(path, f"not valid TOML: {error}.") from error
    source = str(path)
    places = {dotted(key): Place(source, line) for key, line in locate(text).items()}
    raw = RawConfig(data, source, places)
    raw.files.append(path.resolve())
    return raw


def _unreadable(path: Path, message: str) -> ConfigInvalid:
    problem = Problem(source=str(path), key="", message=message)
    return ConfigInvalid("The configuration cannot be used:", problems=(problem,))


def _include(
    raw: RawConfig, path: Path, patterns: Any, place: Place | None, chain: tuple[Path, ...]
) -> None:
    """Merge the files into `raw` that `path` includes; `chain` leads to it."""
    place = place or Place(str(path))
    if not isinstance(patterns, list) or not all(isinstance(p, str) and p for p in patterns):
        message = f"must be a list of file names or patterns, not {shown(patterns)}."
        raw.wrong(place, INCLUDE, message, 'Write include = ["models/*.toml"].')
        return
    for pattern in patterns:
        for found in _matches(raw, path.parent, pattern, place):
            if found.resolve() in chain:
                links = [*chain[chain.index(found.resolve()) :], found.resolve()]
                ring = " includes ".join(str(link) for link in links)
                raw.wrong(place, INCLUDE, f"{pattern!r} goes in a circle: {ring}.")
                continue
            try:
                inner = _parse(found)
            except ConfigInvalid as error:
                raw.problems += error.problems
                continue
            further, at = inner.data.pop(INCLUDE, []), inner.places.pop(INCLUDE, None)
            raw.files += inner.files
            _merge(raw, raw.data, inner, inner.data, "")
            for key, where in inner.places.items():
                raw.places.setdefault(key, where)
            _include(raw, found, further, at, (*chain, found.resolve()))


def _matches(raw: RawConfig, folder: Path, pattern: str, place: Place) -> list[Path]:
    """The files of one pattern, by name. An empty folder is fine; what is not there is not."""
    # Seen from the root, because `glob` takes no absolute patterns.
    whole = folder / pattern
    literal = next((i for i, part in enumerate(whole.parts) if set(part) & set(_WILDCARDS)), None)
    if literal is None:
        if whole.is_file():
            return [whole]
        raw.wrong(place, INCLUDE, f"{pattern!r} is no file.", "Paths are relative to this file.")
        return []
    base = Path(*whole.parts[:literal])
    if not base.is_dir():
        raw.wrong(place, INCLUDE, f"{pattern!r}: there is no folder {str(base)!r}.")
        return []
    return sorted(p for p in base.glob(str(Path(*whole.parts[literal:]))) if p.is_file())


def _merge(
    raw: RawConfig, into: dict[str, Any], inner: RawConfig, data: dict[str, Any], prefix: str
) -> None:
    for name, value in data.items():
        key = f"{prefix}{name}"
        if name not in into:
            into[name] = value
        elif isinstance(into[name], dict) and isinstance(value, dict):
            _merge(raw, into[name], inner, value, f"{key}.")
        else:
            first = raw.places.get(key, raw.source)
            here = inner.places.get(key, Place(inner.source))
            raw.wrong(here, key, f"is set here and at {first}.", "Remove one of them.")
