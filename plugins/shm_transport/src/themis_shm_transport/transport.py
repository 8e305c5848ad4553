"""`SocketTransport`: serves and connects, for `unix` and for `shm`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import msgspec

from themis_core.contracts import Backend, BackendServer
from themis_core.errors import BackendClosed, BackendFailed, ThemisError
from themis_core.protocol import (
    ClientOptions,
    Connection,
    ProtocolError,
    RemoteBackend,
    ServerOptions,
    Session,
    serve_backend,
)
from themis_shm_transport.address import Address, parse
from themis_shm_transport.connection import connect
from themis_shm_transport.handshake import answer, ask, check_peer
from themis_shm_transport.listening import listen, unlisten

_log = logging.getLogger("themis.transport")
_HANDSHAKE_TIMEOUT = 5.0
_MAX_HANDSHAKES = 64


class SocketTransport:
    """A Unix domain socket; for `shm`, with arenas for what is large."""

    def __init__(
        self,
        scheme: str,
        *,
        client: ClientOptions | None = None,
        server: ServerOptions | None = None,
    ) -> None:
        self._scheme = scheme
        self._client = client or ClientOptions()
        self._server = server or ServerOptions()

    async def serve(self, backend: Backend, url: str) -> BackendServer:
        """Offer a started backend. Raises `ConfigInvalid` for a URL it cannot use."""
        address = parse(url, self._scheme)
        server = SocketServer(backend, address, self._server)
        await server.start()
        return server

    def connect(self, url: str) -> RemoteBackend:
        """The backend at a URL. Raises `ConfigInvalid` for one it cannot use."""
        address = parse(url, self._scheme)
        options = self._client
        if address.fd is not None:  # An inherited socket connects once.
            options = msgspec.structs.replace(options, reconnect=False)

        async def dial() -> Connection:
            return await _dial(address)

        return RemoteBackend(dial, url, options, plugin=self._scheme)


class SocketServer:
    """A backend being offered. Many clients; each has a session of its own."""

    def __init__(self, backend: Backend, address: Address, options: ServerOptions) -> None:
        self._backend = backend
        self._address = address
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._inode = 0
        self._sessions: set[Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return self._address.url

    async def start(self) -> None:
        """Begin to accept."""
        if self._address.path is not None:
            self._listener = listen(self._address.path)
            self._inode = self._address.path.lstat().st_ino
            self._loop.add_reader(self._listener.fileno(), self._accept)
        elif self._address.fd is not None:
            sock = socket.socket(fileno=os.dup(self._address.fd))
            sock.setblocking(False)
            self._begin(sock)

    async def drain(self) -> None:
        """Accept nobody and nothing new, and wait until what runs is finished."""
        self._stop_accepting()
        leaving = BackendClosed("The worker is stopping and takes no more requests.")
        for session in self._sessions:
            session.go_away(leaving)
        await asyncio.gather(*(session.drained() for session in self._sessions))

    async def aclose(self) -> None:
        """Stop serving and cancel the requests of all clients; leaves the backend open."""
        self._stop_accepting()
        sessions = list(self._sessions)
        await asyncio.gather(*(session.aclose() for session in sessions))
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def wait_idle(self) -> None:
        """Return when no client is connected."""
        await self._idle.wait()

    def _stop_accepting(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None and self._address.path is not None:
            self._loop.remove_reader(listener.fileno())
            unlisten(listener, self._address.path, self._inode)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(16):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # No more descriptors, say: the next turn tries again.
                _log.error("A client could not be accepted: %s.", error)
                return
            sock.setblocking(False)
            if self._greeting >= _MAX_HANDSHAKES:
                sock.close()
                continue
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        task = self._loop.create_task(self._serve(sock), name="themis client")
        self._tasks.add(task)
        self._idle.clear()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("A session failed.", exc_info=task.exception())

    async def _serve(self, sock: socket.socket) -> None:
        """One client, from the handshake to its end."""
        self._greeting += 1
        try:
            peer = check_peer(sock)
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT):
                arenas = await answer(sock, self._address.arena)
                connection = await connect(sock, arenas, peer)
        except (OSError, ProtocolError, TimeoutError) as error:
            _log.warning("A client was turned away: %r.", error)
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        finally:
            self._greeting -= 1
        session = serve_backend(connection, self._backend, self._options)
        self._sessions.add(session)
        try:
            await session.wait_ended()
        finally:
            connection.abort("the server was closed")
            self._sessions.discard(session)


async def _dial(address: Address) -> Connection:
    """Raises `BackendFailed` or `OSError`."""
    sock = _socket(address)
    try:
        if address.path is not None:
            await asyncio.get_running_loop().sock_connect(sock, str(address.path))
        peer = check_peer(sock)
        arenas = await ask(sock, address.arena)
        return await connect(sock, arenas, peer)
    except ProtocolError as error:
        sock.close()
        raise _refused(address, str(error)) from error
    except BaseException:
        sock.close()
        raise


def _socket(address: Address) -> socket.socket:
    if address.fd is None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.socket(fileno=os.dup(address.fd))
    sock.setblocking(False)
    return sock


def _refused(address: Address, why: str) -> ThemisError:
    return BackendFailed(f"The worker at {address.url} cannot be used: {why}.")
