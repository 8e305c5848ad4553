"""`memory://name`: a transport within one process, and `LossyTransport`, which breaks as told.

The messages are those of the worker protocol; what is faked is only the wire.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from themis_core.contracts import Backend
from themis_core.errors import ConfigInvalid
from themis_core.protocol import (
    Allocation,
    ClientOptions,
    Connection,
    Message,
    Receiver,
    RemoteBackend,
    Session,
    serve_backend,
)

Tap = Callable[["MemoryConnection", Message], list[Message]]


class MemoryConnection:
    """One end of a wire in memory. What is sent arrives in a later turn of the event loop."""

    def __init__(self, tap: Tap) -> None:
        self.sent = 0
        self._tap = tap
        self._other: MemoryConnection | None = None
        self._receiver: Receiver | None = None
        self._early: deque[Message] = deque()
        self._closing = False
        self._ended = asyncio.Event()

    @property
    def congested(self) -> bool:
        """Never: the flow is bounded by the protocol's credit."""
        return False

    def join(self, other: MemoryConnection) -> None:
        """Make the two ends of one wire. Called once, on one of them."""
        self._other, other._other = other, self

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver."""
        self._receiver = receiver
        while self._early:
            receiver.received(self._early.popleft())

    def send(self, message: Message) -> None:
        """Queue a message."""
        if self._closing or self._ended.is_set() or self._other is None:
            return
        self.sent += 1
        for passed in self._tap(self, message):
            asyncio.get_running_loop().call_soon(self._other._deliver, passed)

    def allocate(self, size: int) -> Allocation | None:
        """There is no shared memory."""
        return None

    def close(self) -> None:
        """End it after what was sent."""
        self._closing = True
        asyncio.get_running_loop().call_soon(self.abort, "it was closed")

    def abort(self, reason: str) -> None:
        """End it at once, at both ends."""
        if self._ended.is_set():
            return
        self._ended.set()
        loop = asyncio.get_running_loop()
        if self._receiver is not None:
            loop.call_soon(self._receiver.lost, reason)
        if self._other is not None:
            loop.call_soon(self._other.abort, "the peer closed the connection")

    async def wait_closed(self) -> None:
        """Return when it has ended."""
        await self._ended.wait()

    def _deliver(self, message: Message) -> None:
        if self._ended.is_set():
            return
        if self._receiver is None:
            self._early.append(message)
        else:
            self._receiver.received(message)


class MemoryServer:
    """A backend offered at a `memory://` URL."""

    def __init__(self, transport: MemoryTransport, backend: Backend, url: str) -> None:
        self._transport = transport
        self._backend = backend
        self._url = url
        self._sessions: set[Session] = set()
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL."""
        return self._url

    def accept(self, connection: Connection) -> None:
        """Serve one client."""
        session = serve_backend(connection, self._backend)
        self._sessions.add(session)
        watch = asyncio.create_task(self._watch(session))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def drain(self) -> None:
        """Take no more clients and requests; wait for those in flight."""
        self._transport.forget(self)
        await asyncio.gather(*(session.drained() for session in self._sessions))

    async def aclose(self) -> None:
        """Stop serving; the backend stays open."""
        self._transport.forget(self)
        await asyncio.gather(*(session.aclose() for session in self._sessions))
        await asyncio.gather(*self._watches)

    async def _watch(self, session: Session) -> None:
        await session.wait_ended()
        self._sessions.discard(session)


class MemoryTransport:
    """Servers are known by URL to the transport that serves them, and to no other."""

    def __init__(self) -> None:
        self._servers: dict[str, MemoryServer] = {}
        self._connections: list[MemoryConnection] = []

    async def serve(self, backend: Backend, url: str) -> MemoryServer:
        """Offer a backend. Raises `ConfigInvalid`."""
        _check(url)
        if url in self._servers:
            raise ConfigInvalid(
                f"The URL {url!r} cannot be used: it is served already.",
                field="url",
                remedy="Close the other server, or take another name.",
                plugin="memory",
            )
        server = self._servers[url] = MemoryServer(self, backend, url)
        return server

    def connect(self, url: str) -> Backend:
        """The backend behind a URL. Raises `ConfigInvalid`."""
        _check(url)

        async def dial() -> Connection:
            server = self._servers.get(url)
            if server is None:
                raise ConnectionRefusedError("nobody serves it")
            client, far = MemoryConnection(self.tap), MemoryConnection(self.tap)
            client.join(far)
            self._connections = [c for c in self._connections if not c._ended.is_set()]
            self._connections.append(client)
            server.accept(far)
            return client

        return RemoteBackend(dial, url, ClientOptions(), "memory")

    def forget(self, server: MemoryServer) -> None:
        """No more clients for a server; its URL is free."""
        if self._servers.get(server.url) is server:
            del self._servers[server.url]

    def tap(self, end: MemoryConnection, message: Message) -> list[Message]:
        """What arrives in place of a message; `LossyTransport` makes use of it."""
        return [message]


class LossyTransport(MemoryTransport):
    """A `MemoryTransport` whose connections break: after `lose_after` messages, and by `cut`.

    `lose_after` counts what either end of one connection has sent; None never breaks by itself.
    A connection that breaks loses what is under way. `lost` counts the broken ones.
    """

    def __init__(self, lose_after: int | None = None) -> None:
        super().__init__()
        self.lose_after = lose_after
        self.lost = 0

    def tap(self, end: MemoryConnection, message: Message) -> list[Message]:
        """Nothing, and the end of the connection, once enough was sent."""
        if self.lose_after is None or end.sent <= self.lose_after:
            return [message]
        self.lost += 1
        end.abort("the wire was cut")
        return []

    def cut(self) -> None:
        """Break all connections now."""
        for connection in self._connections:
            if not connection._ended.is_set():
                self.lost += 1
                connection.abort("the wire was cut")


def _check(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "memory" or not parts.netloc or parts.path or parts.query:
        raise ConfigInvalid(
            f"The URL {url!r} cannot be used.",
            field="url",
            remedy="Write memory://name.",
            plugin="memory",
        )
