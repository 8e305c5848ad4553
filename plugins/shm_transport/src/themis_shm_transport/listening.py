"""A Unix socket to listen on: private, and taken over from a worker that died."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from themis_core.errors import ConfigInvalid


def listen(path: Path) -> socket.socket:
    """Bind and listen, mode 0600. Raises `ConfigInvalid` if the path cannot be used."""
    _prepare(path.parent)
    with _lock(path.parent):
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            os.fchmod(sock.fileno(), 0o600)  # On Linux this is the mode of the path as well.
            sock.bind(str(path))
            path.chmod(0o600)
            sock.listen(128)  # Until now, every attempt to connect was refused.
        except OSError as error:
            sock.close()
            raise _unusable(path, str(error)) from error
        except BaseException:
            sock.close()
            raise
    return sock


def unlisten(sock: socket.socket, path: Path, inode: int) -> None:
    """Close the socket and remove its path, unless another worker has taken that."""
    sock.close()
    try:
        with _lock(path.parent):
            if path.lstat().st_ino == inode:
                path.unlink()
    except OSError:
        return  # Somebody has removed it, or its folder.


def _prepare(folder: Path) -> None:
    """The folder must be one in which nobody else can replace our socket."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise _unusable(folder, str(error)) from error
    others_write = bool(status.st_mode & 0o022) and not status.st_mode & stat.S_ISVTX
    if others_write or status.st_uid not in (os.geteuid(), 0):
        raise _unusable(folder, "other users may replace files in it")


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
        raise _unusable(path, "there is something else, or somebody else's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # Its queue is full: it is alive.
    raise _unusable(path, "another worker is listening there")


def _unusable(path: Path, why: str) -> ConfigInvalid:
    return ConfigInvalid(
        f"{path} cannot be used for a worker's socket: {why}.",
        field="url",
        remedy="Choose a path in a folder that is yours alone, such as $XDG_RUNTIME_DIR/themis.",
        plugin="shm_transport",
    )
