"""The lock: which plugin distributions may be loaded, and what their files must be.

`themis.lock` lies beside the configuration. It is JSON: `version` (of this format: 1),
`distributions` (by normalised name: version, whether it is editable, its plugins, and the SHA-256
of each file) and `startup` (the `.pth` files of the environment, which can run code). A plugin is
compared with it before anything of it is imported. What it requires, and is no plugin itself, is
not in it.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import msgspec
from packaging.utils import canonicalize_name

from themis_core.errors import ConfigInvalid, PluginLocked
from themis_core.plugins.discovery import ENTRY_POINT_GROUP, Candidate
from themis_core.plugins.installed import (
    IMPORTABLE,
    Installed,
    forged_caches,
    installed,
    startup_files,
    unrecorded,
)

LOCK_NAME = "themis.lock"
FORMAT = 1
_GROUPS = {ENTRY_POINT_GROUP, "themis.commands"}
_REMEDY = (
    "Find out who changed it; if it is wanted, write the lock anew with `themis lock`, "
    "else install the distribution again."
)


class LockedDistribution(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution that may be loaded. `files` maps relative paths to `sha256:<hex>`."""

    version: str
    editable: bool
    plugins: tuple[str, ...]
    files: dict[str, str]


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a lock file."""

    version: int
    distributions: dict[str, LockedDistribution]
    startup: dict[str, str]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What is not as the lock says. `distribution` is empty for the environment itself."""

    distribution: str
    message: str

    def __str__(self) -> str:
        return f"{self.distribution}: {self.message}" if self.distribution else self.message


class Guard:
    """Compares what is installed with one lock."""

    def __init__(self, lock: Lock, path: Path, site_folders: Iterable[Path] | None = None) -> None:
        self.lock = lock
        self.path = path
        self._site_folders = None if site_folders is None else list(site_folders)
        self._startup: list[Difference] | None = None

    def check(self, candidate: Candidate) -> None:
        """Raises `PluginLocked`, naming what differs. Imports nothing."""
        locked = self.lock.distributions.get(candidate.distribution)
        if locked is None:
            self._refuse(candidate, "is not in the lock")
        if candidate.version != locked.version:
            self._refuse(candidate, f"is locked at version {locked.version}")
        if candidate.name not in locked.plugins:
            self._refuse(candidate, "was not among its distribution's plugins when it was locked")
        for difference in self.startup():
            self._refuse(candidate, f"is not loaded, because {difference}")
        found = installed(_find(candidate))
        own = {(found.root / name).resolve() for name in found.files}
        for message in _differences(found, locked):
            self._refuse(candidate, message)
        for message in _shadows(candidate.module.partition(":")[0], own):
            self._refuse(candidate, message)

    def allows(self, candidate: Candidate) -> bool:
        """True if the candidate's distribution is in the lock."""
        return candidate.distribution in self.lock.distributions

    def startup(self) -> list[Difference]:
        """How the environment's start-up files differ; looked at once."""
        if self._startup is None:
            found = startup_files(self._site_folders)
            self._startup = [
                Difference(distribution="", message=message)
                for message in _compare(self.lock.startup, found, "the start-up file ")
            ]
        return self._startup

    def differences(self, candidates: Iterable[Candidate]) -> list[Difference]:
        """Everything that differs, for `themis lock --check`."""
        found = list(self.startup())
        seen = set()
        for candidate in candidates:
            seen.add(candidate.distribution)
            try:
                self.check(candidate)
            except PluginLocked as error:
                if not (found and error.message.endswith(f"{found[0].message}.")):
                    found.append(
                        Difference(distribution=candidate.distribution, message=error.message)
                    )
        for name in sorted(self.lock.distributions.keys() - seen):
            if self.lock.distributions[name].plugins:
                message = "is locked, but not installed."
                found.append(Difference(distribution=name, message=message))
        return list(dict.fromkeys(found))

    def _refuse(self, candidate: Candidate, message: str) -> NoReturn:
        raise PluginLocked(
            f"Plugin {candidate.name!r} of {candidate.distribution} {candidate.version} {message}.",
            plugin=candidate.name,
            remedy=f"The lock is {self.path}. {_REMEDY}",
        )


def write_lock(
    path: Path,
    site_folders: Iterable[Path] | None = None,
    among: Iterable[metadata.Distribution] | None = None,
) -> Lock:
    """Lock what is installed now. Raises `PluginLocked` if a RECORD disagrees with its files."""
    distributions: dict[str, LockedDistribution] = {}
    for distribution in metadata.distributions() if among is None else among:
        name, names = _plugins_of(distribution)
        if not names or name in distributions:
            continue
        found = installed(distribution)
        _check_record(name, found)
        distributions[name] = LockedDistribution(
            version=distribution.version,
            editable=found.editable,
            plugins=tuple(names),
            files=dict(sorted(found.files.items())),
        )
    lock = Lock(
        version=FORMAT,
        distributions=dict(sorted(distributions.items())),
        startup=startup_files(site_folders),
    )
    text = msgspec.json.format(msgspec.json.encode(lock), indent=2)
    # Whoever reads it meanwhile finds the old one or the new one, whole.
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(text + b"\n")
    draft.replace(path)
    return lock


def read_lock(path: Path, site_folders: Iterable[Path] | None = None) -> Guard:
    """Raises `ConfigInvalid` if the file is no lock: a broken lock locks everything."""
    remedy = "Restore it from where you keep it, or write it anew with `themis lock`."
    try:
        lock = msgspec.json.decode(path.read_bytes(), type=Lock)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"The lock {path} cannot be read: {error}.", remedy=remedy) from error
    if lock.version != FORMAT:
        raise ConfigInvalid(
            f"The lock {path} has format {lock.version}; this Themis reads {FORMAT}.",
            remedy=remedy,
        )
    return Guard(lock, path, site_folders)


def lock_beside(config: str | Path | None, *, must_exist: bool = True) -> Path | None:
    """The lock in the folder of a configuration (default: the working directory), if any."""
    chosen = config or os.environ.get("THEMIS_CONFIG") or ""
    folder = Path(chosen).resolve().parent if chosen else Path.cwd()
    path = folder / LOCK_NAME
    # Whatever is there must be obeyed, or say that it cannot be read.
    return path if path.exists() or path.is_symlink() or not must_exist else None


def _plugins_of(distribution: metadata.Distribution) -> tuple[str, list[str]]:
    try:
        names = sorted({e.name for e in distribution.entry_points if e.group in _GROUPS})
        return (canonicalize_name(distribution.metadata["Name"]) if names else ""), names
    # Metadata that somebody broke can raise anything; `discover` names it, and nothing is loaded.
    except Exception:  # noqa: BLE001
        return "", []


def _find(candidate: Candidate) -> metadata.Distribution:
    for distribution in metadata.distributions(
        name=candidate.distribution, path=[candidate.root or "."]
    ):
        return distribution
    return metadata.distribution(candidate.distribution)


def _check_record(name: str, found: Installed) -> None:
    wrong = [n for n, value in found.recorded.items() if value and value != found.files[n]]
    wrong += unrecorded(found) + forged_caches(found)
    if wrong:
        raise PluginLocked(
            f"{name} cannot be locked: {', '.join(sorted(wrong))} differ from its RECORD.",
            plugin=name,
            remedy="Install it again: pip install --force-reinstall.",
        )


def _differences(found: Installed, locked: LockedDistribution) -> list[str]:
    if found.editable != locked.editable:
        kind = "an editable" if locked.editable else "an ordinary"
        return [f"is locked as {kind} installation"]
    present = {name: value for name, value in found.files.items() if value != "missing"}
    if found.editable:  # Notes and data that nobody imports may come.
        listed = locked.files
        present = {n: v for n, v in present.items() if n in listed or n.endswith(IMPORTABLE)}
    messages = _compare(locked.files, present, "")
    messages += [f"has {name}, which it did not bring" for name in unrecorded(found)]
    return messages + [
        f"has byte code in {n} that is not its source's" for n in forged_caches(found)
    ]


def _compare(listed: dict[str, str], found: dict[str, str], what: str) -> list[str]:
    messages = []
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            messages.append(f"{what}{name} is missing")
        elif name not in listed:
            messages.append(f"{what}{name} is not in the lock")
        elif listed[name] != found[name]:
            messages.append(f"{what}{name} has changed")
    return messages


def _shadows(module: str, files: set[Path]) -> list[str]:
    """Says from where an import of the module, or of a package it is in, would really come."""
    search: list[str] | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = _spec(name, search)
        if spec is None:
            return []  # The import will say it.
        search = list(spec.submodule_search_locations or [])
        if spec.origin is None and search:  # A namespace package: it has no file.
            continue
        if spec.origin is None or Path(spec.origin).resolve() not in files:
            return [f"would get its module {name} from {spec.origin}, which is not its own"]
    return []


def _spec(name: str, search: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    already = sys.modules.get(name)
    if already is not None and already.__spec__ is not None:
        return already.__spec__
    for finder in sys.meta_path:
        spec = finder.find_spec(name, search)
        if spec is not None:
            return spec
    return None
