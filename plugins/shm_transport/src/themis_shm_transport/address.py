"""URLs: `unix:///run/themis/a.sock`, or `unix://?fd=5` for one inherited, connected socket."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from themis_core.errors import ConfigInvalid

MIB = 1 << 20
DEFAULT_ARENA = 64 * MIB
MAX_PATH = 107  # sockaddr_un, without the final zero
MAX_ARENA_MIB = 1 << 20


class Address(NamedTuple):
    """Where to listen or connect. Exactly one of `path` and `fd` is given; `arena` in bytes."""

    url: str
    path: Path | None
    fd: int | None
    arena: int


def parse(url: str, scheme: str) -> Address:
    """Raises `ConfigInvalid`, saying what is wrong with the URL."""
    parts = urlsplit(url)
    if parts.scheme != scheme:
        raise _invalid(url, f"the scheme is not {scheme}://")
    if parts.netloc or parts.fragment:
        raise _invalid(url, "it names a host, but this transport stays on one")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    fd = _number(url, options, "fd")
    arena = _number(url, options, "arena_mib") if scheme == "shm" else 0
    if options:
        raise _invalid(url, f"{', '.join(sorted(options))} is not known")
    if arena is not None and arena > MAX_ARENA_MIB:
        raise _invalid(url, f"arena_mib is {arena}, but at most {MAX_ARENA_MIB}")
    size = DEFAULT_ARENA if arena is None else arena * MIB
    if fd is not None:
        if parts.path:
            raise _invalid(url, "it has both a path and fd")
        return Address(url, None, fd, size)
    path = unquote(parts.path)
    if not path.startswith("/") or path.endswith("/"):
        raise _invalid(url, "it needs the absolute path of a socket")
    if len(path.encode()) > MAX_PATH:
        raise _invalid(url, f"the path is longer than {MAX_PATH} bytes")
    return Address(url, Path(path), None, size)


def _number(url: str, options: dict[str, str], name: str) -> int | None:
    text = options.pop(name, None)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise _invalid(url, f"{name}={text!r} is no number")
    return int(text)


def _invalid(url: str, why: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"The URL {url!r} cannot be used: {why}.",
        field="url",
        remedy="Write unix:///absolute/path.sock or shm:///absolute/path.sock.",
        plugin="shm_transport",
    )
