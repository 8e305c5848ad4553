"""The files of an installed distribution, and the start-up files of an environment, with hashes.

A distribution's files are those of its RECORD (the format is in the packaging specification
"Recording installed projects"). An editable one records only a pointer: its source tree counts as
it is found.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.machinery
import json
import marshal
import os
import site
import struct
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path
from types import CodeType
from urllib.parse import unquote, urlsplit

import msgspec

# What an import would take, beside source: these can shadow a module of the same name.
IMPORTABLE = tuple(importlib.machinery.all_suffixes())
_STARTUP = ("sitecustomize", "usercustomize")
# How it was installed, and the list itself: no code, and different with each installer.
_ABOUT_THE_INSTALLATION = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"}
_PYC_HEADER = 16  # PEP 552: magic number, flags, then time and size, or a hash.


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """`files` maps paths relative to `root` to `sha256:<hex>`; `recorded` has RECORD's hashes."""

    root: Path
    editable: bool
    files: dict[str, str]
    recorded: dict[str, str]


def installed(distribution: metadata.Distribution) -> Installed:
    """Read and hash everything that belongs to a distribution. Raises `OSError`."""
    tree = _editable_tree(distribution)
    if tree is not None:
        files = {_relative(path, tree): hashed(path) for path in _walk(tree)}
        return Installed(root=tree, editable=True, files=files, recorded={})
    root = Path(str(distribution.locate_file("")))
    recorded = dict(_record(distribution))
    files = {
        name: hashed(root / name) if (root / name).is_file() else "missing" for name in recorded
    }
    return Installed(root=root, editable=False, files=files, recorded=recorded)


def unrecorded(found: Installed) -> list[str]:
    """Files in the distribution's own folders that an import could take and nobody listed."""
    folders = {Path(name).parent for name in found.files}
    own = {f for f in folders if f != Path() and not f.name.endswith(".dist-info")}
    extra = []
    for folder in own:
        if not (found.root / folder).is_dir():  # Its files are missing, which is said elsewhere.
            continue
        for entry in os.scandir(found.root / folder):
            path = folder / entry.name
            if entry.is_dir():
                if entry.name != "__pycache__" and path not in own and not _leads_to(path, own):
                    extra += [
                        _relative(file, found.root)
                        for file in _walk(found.root / path)
                        if file.name.endswith(IMPORTABLE)
                    ]
            elif entry.name.endswith(IMPORTABLE) and path.as_posix() not in found.files:
                extra.append(path.as_posix())
    return sorted(extra)


def forged_caches(found: Installed) -> list[str]:
    """Byte code that Python would run instead of a source file, and that is not that source's."""
    forged = []
    for name in found.files:
        if name.endswith(".py"):
            source = found.root / name
            cache = Path(cache_from_source(str(source)))
            if source.is_file() and cache.is_file() and not _same_code(source, cache):
                forged.append(_relative(cache, found.root))
    return forged


def startup_files(folders: Iterable[Path] | None = None) -> dict[str, str]:
    """What runs whenever Python starts, with hashes: `.pth` files, `sitecustomize` and the like.

    Names are relative to `sys.prefix` where they lie in it.
    """
    found = {}
    for folder in site_folders() if folders is None else folders:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.suffix == ".pth" or path.name.partition(".")[0] in _STARTUP:
                found[_relative(path, Path(sys.prefix))] = (
                    hashed(path) if path.is_file() else "a folder"
                )
    return found


def site_folders() -> list[Path]:
    """The folders whose `.pth` files Python reads when it starts."""
    folders = [Path(folder) for folder in site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(Path(site.getusersitepackages()))
    return folders


def hashed(path: Path) -> str:
    """`sha256:<hex>` of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _record(distribution: metadata.Distribution) -> Iterator[tuple[str, str]]:
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        if not row:
            continue
        name, recorded = row[0], row[1] if len(row) > 1 else ""
        parts = name.split("/")
        about = parts[-1] in _ABOUT_THE_INSTALLATION and parts[0].endswith(".dist-info")
        # Scripts lie outside and are never imported; byte code is compared with its source.
        if about or ".." in parts or "__pycache__" in parts or Path(name).is_absolute():
            continue
        algorithm, _, value = recorded.partition("=")
        if algorithm == "sha256":
            raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
            yield name, f"sha256:{raw.hex()}"
        else:
            yield name, ""


def _editable_tree(distribution: metadata.Distribution) -> Path | None:
    """The source tree of an editable installation: what its `.pth` names, else the project."""
    try:
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return None
    if not (isinstance(direct, dict) and direct.get("dir_info", {}).get("editable")):
        return None
    root = Path(str(distribution.locate_file("")))
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        name = row[0] if row else ""
        if name.endswith(".pth") and (root / name).is_file():
            target = Path((root / name).read_text().strip())
            if target.is_dir():
                return target
    return Path(unquote(urlsplit(direct["url"]).path))


def _walk(tree: Path) -> Iterator[Path]:
    """The files of a source tree, but what is hidden, cached, or an environment of its own."""
    for folder, inner, files in os.walk(tree):
        inner[:] = sorted(
            name
            for name in inner
            if name != "__pycache__"
            and not name.startswith(".")
            and not (Path(folder) / name / "pyvenv.cfg").exists()
        )
        yield from (Path(folder) / name for name in sorted(files) if not name.startswith("."))


def _same_code(source: Path, cache: Path) -> bool:
    data = cache.read_bytes()
    flags, time, size = struct.unpack_from("<III", data.ljust(_PYC_HEADER, b"\0"), 4)
    status = source.stat()
    stale = (time, size) != (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    if not flags and stale:
        return True  # Python will not use it.
    try:
        code = marshal.loads(data[_PYC_HEADER:])
        wanted = compile(source.read_bytes(), str(source), "exec", dont_inherit=True)
    except (ValueError, EOFError, TypeError, SyntaxError):
        return False
    return isinstance(code, CodeType) and code == wanted


def _leads_to(path: Path, folders: set[Path]) -> bool:
    return any(path in folder.parents for folder in folders)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
