"""Before the protocol: who the peer is, and the arenas' file descriptors.

Each side sends `_HEAD` (magic, major, minor, arena size, length of a refusal), with its arena's
descriptor. Descriptors travel here only: what reads the socket afterwards would drop them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import NamedTuple

from themis_core.protocol import ProtocolError
from themis_shm_transport.arena import AVAILABLE, Arena, PeerArena

_HEAD = struct.Struct("<4sHHQH")
_MAGIC = b"TMIS"
_MAJOR, _MINOR = 1, 0
_MAX_TEXT = 1000


class Arenas(NamedTuple):
    """Memory to send from and to receive from. None: bulk goes through the socket."""

    ours: Arena | None
    theirs: PeerArena | None

    def close(self) -> None:
        """Close both files."""
        for arena in self:
            if arena is not None:
                arena.close()


def check_peer(sock: socket.socket) -> int:
    """The peer's process id, 0 if unknown. Raises `ProtocolError` for another user's process."""
    if not hasattr(socket, "SO_PEERCRED"):  # macOS: the socket's mode has to do.
        return 0
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    if uid != os.geteuid():
        raise ProtocolError(f"the peer runs as user {uid}, this process as user {os.geteuid()}")
    return int(pid)


async def ask(sock: socket.socket, arena_size: int) -> Arenas:
    """The client's part. Raises `ProtocolError` with the server's reason, or `OSError`."""
    ours = make_arena(arena_size)
    theirs: PeerArena | None = None
    try:
        _send(sock, ours)
        theirs = await _receive(sock)
    except BaseException:
        Arenas(ours, theirs).close()
        raise
    return _agree(ours, theirs)


async def answer(sock: socket.socket, arena_size: int) -> Arenas:
    """The server's part. Raises `ProtocolError`, after having told the client, or `OSError`."""
    ours: Arena | None = None
    theirs: PeerArena | None = None
    try:
        theirs = await _receive(sock)
        ours = make_arena(arena_size) if theirs is not None else None
        _send(sock, ours)
    except ProtocolError as error:
        Arenas(ours, theirs).close()
        _refuse(sock, str(error))
        raise
    except BaseException:
        Arenas(ours, theirs).close()
        raise
    return _agree(ours, theirs)


def make_arena(size: int) -> Arena | None:
    """An arena, or None if none is wanted or to be had."""
    if not size or not AVAILABLE:
        return None
    try:
        return Arena(size)
    except OSError:
        return None  # No memory, or a kernel without that seal: the socket carries everything.


def _agree(ours: Arena | None, theirs: PeerArena | None) -> Arenas:
    """Both directions have an arena, or none has."""
    if ours is None or theirs is None:
        Arenas(ours, theirs).close()
        return Arenas(None, None)
    return Arenas(ours, theirs)


def _send(sock: socket.socket, arena: Arena | None) -> None:
    head = _HEAD.pack(_MAGIC, _MAJOR, _MINOR, arena.size if arena else 0, 0)
    if arena is None:
        sock.send(head)
    else:
        socket.send_fds(sock, [head], [arena.fd])


def _refuse(sock: socket.socket, why: str) -> None:
    text = why.encode()[:_MAX_TEXT]
    try:
        sock.send(_HEAD.pack(_MAGIC, _MAJOR, _MINOR, 0, len(text)) + text)
    except OSError:
        return  # It has gone already.


async def _receive(sock: socket.socket) -> PeerArena | None:
    data, fds = await _exactly(sock, _HEAD.size, with_fds=True)
    try:
        magic, major, minor, size, refusal = _HEAD.unpack(data)
        if magic != _MAGIC:
            raise ProtocolError("the peer speaks another protocol")
        if refusal:
            text, _ = await _exactly(sock, min(refusal, _MAX_TEXT))
            raise ProtocolError(f"the worker refused: {text.decode('utf-8', 'replace')}")
        if major != _MAJOR:
            spoken = f"{_MAJOR}.{_MINOR}"
            raise ProtocolError(f"transport {major}.{minor} is not supported, only {spoken}")
        if len(fds) != bool(size):
            raise ProtocolError(f"{len(fds)} descriptors came with an arena of {size} bytes")
        return PeerArena(fds.pop(), size) if fds else None
    finally:
        for fd in fds:
            os.close(fd)


async def _exactly(
    sock: socket.socket, count: int, *, with_fds: bool = False
) -> tuple[bytes, list[int]]:
    """So many bytes, and the descriptors that came with them. Never reads further."""
    data, fds = b"", list[int]()
    try:
        while len(data) < count:
            try:
                if with_fds:
                    # `recv_fds` gives inheritable descriptors unless it is told not to.
                    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
                    part, new, flags, _ = socket.recv_fds(sock, count - len(data), 4, flags)
                    fds += new
                    if flags & socket.MSG_CTRUNC:
                        raise ProtocolError("too many descriptors")
                else:
                    part = sock.recv(count - len(data))
            except BlockingIOError:
                await _readable(sock)
                continue
            if not part:
                raise ConnectionResetError("the peer closed the connection in the handshake")
            data += part
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return data, fds


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())
