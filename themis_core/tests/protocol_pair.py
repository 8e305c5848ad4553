"""Two ends of a connection in memory, through the real framing, for tests of the protocol."""

from __future__ import annotations

import asyncio

from themis_core.contracts import Backend
from themis_core.protocol import (
    MAX_FRAME,
    Allocation,
    ClientOptions,
    Connection,
    FrameReader,
    Kind,
    Message,
    ProtocolError,
    Receiver,
    RemoteBackend,
    ServerOptions,
    Session,
    announce,
    encode_frame,
    pieces,
    serve_backend,
    size,
)


class End:
    """One end. `other` is set by `pair`. What is sent arrives in the next turn of the loop."""

    def __init__(self) -> None:
        self.other: End | None = None
        self.congested = False
        self.sent: list[Message] = []
        self.reason = ""
        self._receiver: Receiver | None = None
        self._reader = FrameReader()
        self._early = b""
        self._closed = asyncio.Event()
        self._bulks = 0
        self._closing = False

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, b""
        if early:
            self.feed(early)

    def send(self, message: Message) -> None:
        if self._closing or self._closed.is_set():
            return
        self.sent.append(message)
        if size(message) <= MAX_FRAME:
            self._write(encode_frame(message))
            return
        self._bulks += 1
        self._write(encode_frame(announce(message, self._bulks)))
        for piece in pieces(message, self._bulks):
            self._write(encode_frame(piece))

    def allocate(self, size: int) -> Allocation | None:
        return None

    def close(self) -> None:
        self._closing = True
        asyncio.get_running_loop().call_soon(self.abort, "it was closed")

    def abort(self, reason: str) -> None:
        if self._closed.is_set():
            return
        self.reason = reason
        self._closed.set()
        loop = asyncio.get_running_loop()
        if self._receiver is not None:
            loop.call_soon(self._receiver.lost, reason)
        if self.other is not None:
            loop.call_soon(self.other.abort, "the peer closed it")

    async def wait_closed(self) -> None:
        await self._closed.wait()

    def feed(self, data: bytes) -> None:
        """Bytes from the wire, in whatever portions there is room for."""
        if self._closed.is_set():
            return
        if self._receiver is None:
            self._early += data
            return
        try:
            for message in parse(self._reader, data):
                self._receiver.received(message)
        except ProtocolError as error:
            self._receiver.breach(str(error))

    def _write(self, data: bytes) -> None:
        if self.other is not None:
            asyncio.get_running_loop().call_soon(self.other.feed, data)


def parse(reader: FrameReader, data: bytes) -> list[Message]:
    """All messages in these bytes."""
    found: list[Message] = []
    while data:
        room = reader.buffer()
        count = min(len(room), len(data))
        assert count, "no room to receive"
        room[:count] = data[:count]
        data = data[count:]
        found += reader.received(count)
    return found


def pair() -> tuple[End, End]:
    client, server = End(), End()
    client.other, server.other = server, client
    return client, server


class Served:
    """A backend, its server session and a client, joined in memory."""

    def __init__(
        self,
        backend: Backend,
        *,
        client: ClientOptions | None = None,
        server: ServerOptions | None = None,
    ) -> None:
        self.backend = backend
        self.client_end, self.server_end = pair()
        self._server_options = server
        self.session: Session | None = None
        options = client or ClientOptions(reconnect=False)
        self.remote = RemoteBackend(self._dial, "memory", options)

    async def __aenter__(self) -> Served:
        await self.backend.start()
        await self.remote.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remote.aclose()
        if self.session is not None:
            await self.session.wait_ended()
        await self.backend.aclose()

    async def _dial(self) -> Connection:
        self.session = serve_backend(self.server_end, self.backend, self._server_options)
        return self.client_end


def frame(kind: int, number: int = 0, payload: bytes = b"", buffer: bytes | None = None) -> bytes:
    """The bytes of any message, sensible or not."""
    view = None if buffer is None else memoryview(buffer)
    return encode_frame(Message(kind, number, payload, view))


HELLO = frame(Kind.HELLO, 0, b"\x93\xa6themis\x01\x00")
