"""The path of a worker's Unix socket: private, and taken over from a worker that died.

For transports that listen at one. Needs a system with Unix sockets and `flock`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from themis_core.errors import ConfigInvalid


@contextmanager
def claimed(path: Path, plugin: str) -> Iterator[None]:
    """Within, nothing is at `path`, and no other worker takes it: bind the socket there.

    Raises `ConfigInvalid` if the path cannot be used, or for an `OSError` from within.
    """
    try:
        _prepare(path.parent)
        with _lock(path.parent):
            _remove_stale(path)
            yield
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be used for a worker's socket: {error}.",
            field="url",
            remedy="Choose a path in a folder that is yours alone, such as "
            "$XDG_RUNTIME_DIR/themis.",
            plugin=plugin,
        ) from error


def give_up(path: Path, inode: int) -> None:
    """Remove the path of one's socket, unless another worker has taken it."""
    try:
        with _lock(path.parent):
            if path.lstat().st_ino == inode:
                path.unlink()
    except OSError:
        return  # Somebody has removed it, or its folder.


def _prepare(folder: Path) -> None:
    """The folder must be one in which nobody else can replace our socket."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    others_write = bool(status.st_mode & 0o022) and not status.st_mode & stat.S_ISVTX
    if others_write or status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"other users may replace files in {folder}")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One worker at a time looks whether a path is free and takes it. Leaves no file."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise FileExistsError("there is something else, or somebody else's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # Its queue is full: it is alive.
    raise FileExistsError("another worker is listening there")
