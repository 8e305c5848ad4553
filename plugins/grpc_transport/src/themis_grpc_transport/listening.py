"""A Unix socket for gRPC to listen on, of mode 0600.

gRPC binds and removes sockets without looking, and with the process's umask. So it binds in a
folder of mode 0700 that exists for a moment, and the socket gets its path when it is private.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from themis_core.worker.socket_path import claimed


def bind(path: Path, bind_at: Callable[[Path], None]) -> int:
    """Have `bind_at` make a socket, and put it at `path`. Returns its inode.

    Raises `ConfigInvalid` if the path cannot be used.
    """
    with (
        claimed(path, "grpc_transport"),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder,
    ):
        fresh = Path(folder) / "s"
        try:
            bind_at(fresh)
        except RuntimeError as error:  # What gRPC says of all that went wrong.
            raise OSError(str(error)) from error
        fresh.chmod(0o600)
        inode = fresh.lstat().st_ino
        fresh.rename(path)
        return inode
