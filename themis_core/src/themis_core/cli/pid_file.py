"""The file through which `themis reload` finds a server and hears what became of its signal."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from themis_core.errors import ConfigInvalid

try:
    import fcntl
except ImportError:  # Windows, where there is no SIGHUP either.
    fcntl = None  # type: ignore[assignment]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one reload: the changes, or why nothing was changed."""

    ok: bool
    message: str
    code: str = ""
    restart: tuple[str, ...] = ()


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """`reloads` counts those that were tried; `last` is the latest."""

    pid: int
    ready: bool = False
    reloads: int = 0
    last: Outcome | None = None


class PidFile:
    """Written and locked while the server lives, removed when it ends.

    The lock tells a living server from a file that was left behind by a killed one, whose process
    id may be another process by now. Raises `ConfigInvalid` if the file cannot be had.
    """

    def __init__(self, path: Path) -> None:
        if fcntl is None:
            raise ConfigInvalid("--pid-file needs a system with file locks, such as Linux.")
        self._path = path
        self._content = Content(pid=os.getpid())
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigInvalid(f"The pid file {str(path)!r} cannot be written: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise ConfigInvalid(
                f"The pid file {str(path)!r} belongs to a server that is running.",
                remedy="Stop that one, or give this one another file.",
            ) from error
        self._write()

    def ready(self) -> None:
        """The server listens, and takes signals."""
        self._content = msgspec.structs.replace(self._content, ready=True)
        self._write()

    def reloaded(self, outcome: Outcome) -> None:
        """Note what became of a reload."""
        number = self._content.reloads + 1
        self._content = msgspec.structs.replace(self._content, reloads=number, last=outcome)
        self._write()

    def _write(self) -> None:
        # In place, since the lock is on this file and not on its name.
        text = msgspec.json.encode(self._content) + b"\n"
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)


def read_pid_file(path: Path) -> Content | None:
    """What a living server wrote; None while it is writing. Raises `ConfigInvalid`."""
    remedy = "Is `themis serve --pid-file` running with this file?"
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                text = file.read()  # Locked: its server lives.
            else:
                raise ConfigInvalid(f"No server holds the pid file {str(path)!r}.", remedy=remedy)
    except OSError as error:
        raise ConfigInvalid(
            f"The pid file {str(path)!r} cannot be read: {error}.", remedy=remedy
        ) from error
    try:
        return msgspec.json.decode(text, type=Content)
    except msgspec.DecodeError:
        return None
