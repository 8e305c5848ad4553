"""Binding the listening sockets, so that a bad address is a clear error before anything starts."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import ExitStack

from themis_core.errors import ConfigInvalid

BACKLOG = 2048

# A name such as localhost often has an IPv6 address where IPv6 is switched off.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


async def bind(host: str, port: int) -> list[socket.socket]:
    """Bound sockets, one for each address of the host, all with the same port.

    Raises `ConfigInvalid` if the host is unknown or the port cannot be had.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: such a name cannot exist.
        raise ConfigInvalid(
            f"The host {host!r} has no address: {error}.",
            field="server.host",
            remedy="Set server.host to an address of this machine, such as 127.0.0.1 or 0.0.0.0.",
        ) from error
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    with ExitStack() as undo:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # The first socket may get a free port (0); the others take the same.
            taken = sockets[0].getsockname()[1] if sockets else port
            try:
                listener = _listener(family, kind, protocol, (address[0], taken, *address[2:]))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise _not_bound(error, host, taken) from error
                absent = error
            else:
                sockets.append(undo.enter_context(listener))
        if not sockets:
            raise _not_bound(absent or OSError("it has no address"), host, port)
        undo.pop_all()
    return sockets


def url_of(host: str, listener: socket.socket) -> str:
    """The URL by which a client on this machine reaches the server."""
    address, port = listener.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    name = here.get(address, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _listener(
    family: int, kind: int, protocol: int, address: tuple[str | int, ...]
) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            # A port whose last connections still time out is free. (Windows means another thing.)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        # Another program's wildcard socket shows only here.
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _not_bound(error: OSError, host: str, port: int) -> ConfigInvalid:
    if error.errno == errno.EADDRINUSE:
        return ConfigInvalid(
            f"Port {port} on {host} is already in use.",
            field="server.port",
            remedy="Stop the program that uses it, or set another server.port; 0 takes a free one.",
        )
    if error.errno == errno.EACCES:
        return ConfigInvalid(
            f"Port {port} on {host} needs more rights than this user has.",
            field="server.port",
            remedy="Set server.port to 1024 or more.",
        )
    return ConfigInvalid(
        f"The server cannot listen on {host} port {port}: {error.strerror or error}.",
        field="server.host",
        remedy="Set server.host to an address of this machine, such as 127.0.0.1 or 0.0.0.0.",
    )
