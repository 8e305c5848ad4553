"""A Unix socket to listen on, of mode 0600."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from themis_core.worker.socket_path import claimed, give_up


def listen(path: Path) -> socket.socket:
    """Bind and listen. Raises `ConfigInvalid` if the path cannot be used."""
    with claimed(path, "shm_transport"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            os.fchmod(sock.fileno(), 0o600)  # On Linux this is the mode of the path as well.
            sock.bind(str(path))
            path.chmod(0o600)
            sock.listen(128)  # Until now, every attempt to connect was refused.
        except BaseException:
            sock.close()
            raise
    return sock


def unlisten(sock: socket.socket, path: Path, inode: int) -> None:
    """Close the socket and remove its path, unless another worker has taken that."""
    sock.close()
    give_up(path, inode)
