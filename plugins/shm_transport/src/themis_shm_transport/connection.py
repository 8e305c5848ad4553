"""A connected Unix socket, with arenas beside it, as a `Connection` of the worker protocol."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import weakref
from collections import deque
from typing import cast

from themis_core.protocol import (
    FIRST_PRIVATE,
    MAX_FRAME,
    MAX_MESSAGE,
    Allocation,
    FrameReader,
    Kind,
    Message,
    ProtocolError,
    Receiver,
    announce,
    encode_frame,
    size,
)
from themis_shm_transport.arena import Block
from themis_shm_transport.handshake import Arenas

SLAB = FIRST_PRIVATE  # a message whose buffer is in the sender's arena
SLAB_PIECE = FIRST_PRIVATE + 1  # a piece of a large message, likewise
FREE = FIRST_PRIVATE + 2  # the block at the offset that is its id is not needed any more

INLINE = 64 << 10  # Up to here a copy through the socket costs less than a mapping.
_PIECE = 4 << 20
_PATIENCE = 0.05  # Seconds to wait for room in the arena before the socket has to do.
_SO_PEERPIDFD = 77  # Linux 6.5
_slab = struct.Struct("<B7xQQ")

_alive: weakref.WeakSet[SocketConnection] = weakref.WeakSet()


class SocketConnection(asyncio.BufferedProtocol):
    """One peer. Made by `connect`; `wait_closed` returns when its descriptors are closed."""

    def __init__(self, sock: socket.socket, arenas: Arenas, peer: int) -> None:
        self._socket = sock
        self._ours, self._theirs = arenas
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._reader = FrameReader()
        self._congested = False
        self._deaf = False
        self._closing = False
        self._finishing = False
        self._reason = ""
        self._early: list[Message] = []
        self._closed = asyncio.Event()
        self._queue: deque[Message] = deque()
        self._queued: dict[int, int] = {}
        self._writer: asyncio.Task[None] | None = None
        self._progress = asyncio.Event()
        self._bulks = 0
        self._pidfd = _open_pidfd(sock, peer)

    @property
    def congested(self) -> bool:
        """True while the kernel takes no more."""
        return self._congested

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver."""
        self._receiver = receiver
        if self._transport is None:
            self._loop.call_soon(receiver.lost, self._reason or "it was never open")
            return
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._peer_died)
        if self._early:
            self._loop.call_soon(self._deliver, self._early)
        self._early = []

    def send(self, message: Message) -> None:
        """Write a message, or queue it if it is large or belongs behind such a one."""
        if self._closing or self._finishing or self._transport is None:
            return
        if message.id in self._queued:
            self._enqueue(message)
            return
        buffer = message.buffer
        if buffer is None or buffer.nbytes <= INLINE:
            if len(message.payload) <= MAX_FRAME - INLINE:
                self._transport.write(encode_frame(message))
                return
        elif len(message.payload) <= INLINE:
            block = self._block(message, buffer)
            if block is not None:
                self._send_slab(message, block)
                return
            if size(message) <= MAX_FRAME:
                self._transport.write(encode_frame(message))
                return
        self._enqueue(message)

    def allocate(self, size: int) -> Allocation | None:
        """Memory in our arena."""
        return self._ours.lend(size) if self._ours is not None and size > INLINE else None

    def close(self) -> None:
        """End after what was sent."""
        self._finishing = True
        if not self._queue:
            self._finish()

    def _finish(self) -> None:
        self._closing = self._deaf = True
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End at once."""
        self._closing = True
        self._deaf = True
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return when the socket and the arenas are closed."""
        await self._closed.wait()
        if self._writer is not None:
            await asyncio.wait([self._writer])

    def give_up(self) -> None:
        """End it before it was opened, or while it is."""
        if self._transport is not None:
            self.abort("it was given up while it was opened")
            return
        self._socket.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        Arenas(self._ours, self._theirs).close()

    # --- what asyncio calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open; nothing is read before `start`."""
        # uvloop's are transports without being `asyncio.Transport`.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1 << 18)
        _alive.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive."""
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._deaf:
            return
        try:
            messages = self._reader.received(nbytes)
        except ProtocolError as error:
            self._breach(str(error))
        else:
            self._deliver(messages)

    def _deliver(self, messages: list[Message]) -> None:
        receiver = self._receiver
        if receiver is None:  # Between the handshake and `start`.
            self._early += messages
            return
        try:
            for message in messages:
                if message.kind < FIRST_PRIVATE:
                    receiver.received(message)
                else:
                    self._private(message, receiver)
        except ProtocolError as error:
            self._breach(str(error))

    def _breach(self, reason: str) -> None:
        self._deaf = True
        if self._receiver is not None:
            self._receiver.breach(reason)
        else:
            self.abort(reason)

    def eof_received(self) -> bool:
        """The peer has closed its end."""
        self._reason = self._reason or "the other process closed it or ended"
        return False

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self._congested = True

    def resume_writing(self) -> None:
        """It takes more again."""
        self._congested = False
        self._progress.set()
        if self._receiver is not None:
            self._receiver.writable()

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        _alive.discard(self)
        self._closing = self._deaf = True
        self._transport = None
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._writer is not None:
            self._writer.cancel()
        Arenas(self._ours, self._theirs).close()
        self._ours = self._theirs = None
        self._queue.clear()
        self._closed.set()
        if self._receiver is not None:
            self._receiver.lost(self._reason or (str(error) if error else "it was closed"))

    def _peer_died(self) -> None:
        # Before the socket's end: a child of the peer may still hold that open.
        self._loop.remove_reader(self._pidfd)
        self._reason = self._reason or "the other process ended"
        # What it had written is still to be read; the socket tells when that is over.
        self._loop.call_later(_PATIENCE, self.abort, self._reason)

    # --- arenas ----------------------------------------------------------------------------------

    def _block(self, message: Message, buffer: memoryview) -> Block | None:
        """The block that holds the message's buffer: its own, or a copy, if there is room."""
        if self._ours is None:
            return None
        owner = message.owner
        if isinstance(owner, Block) and owner.arena is self._ours and not owner.sent:
            return owner
        block = self._ours.allocate(buffer.nbytes)
        if block is not None:
            block.memory[:] = buffer.cast("B")
        return block

    def _send_slab(self, message: Message, block: Block) -> None:
        assert self._transport is not None
        block.arena.sent(block)
        head = _slab.pack(message.kind, block.offset, block.length)
        self._transport.write(
            encode_frame(Message(SLAB, message.id, head + bytes(message.payload)))
        )

    def _private(self, message: Message, receiver: Receiver) -> None:
        if message.kind == FREE and self._ours is not None:
            self._ours.returned(message.id)
            self._progress.set()
            return
        if message.kind not in (SLAB, SLAB_PIECE) or self._theirs is None:
            raise ProtocolError(f"a message of unknown kind {message.kind}")
        if len(message.payload) < _slab.size:
            raise ProtocolError("a reference into the arena is cut short")
        kind, offset, length = _slab.unpack_from(message.payload)
        if length > MAX_MESSAGE:
            raise ProtocolError(f"a message of {length} bytes; at most {MAX_MESSAGE} are allowed")
        view = self._theirs.view(offset, length, self._done)
        if message.kind == SLAB:
            if kind >= Kind.BULK:
                raise ProtocolError(f"kind {kind} cannot come through the arena")
            rest = memoryview(message.payload)[_slab.size :]
            receiver.received(Message(kind, message.id, rest, view))
            return
        self._reader.assembly.room(message.id, length)[:] = view
        complete = self._reader.assembly.filled(message.id, length)
        if complete is not None:
            receiver.received(complete)

    def _done(self, offset: int) -> None:
        """Nothing refers to a block of the peer's any more. Called wherever that was noticed."""
        try:
            self._loop.call_soon_threadsafe(self.send, Message(FREE, offset))
        except RuntimeError:
            return  # The loop is closed, and with it the connection.

    # --- large messages --------------------------------------------------------------------------

    def _enqueue(self, message: Message) -> None:
        self._queue.append(message)
        self._queued[message.id] = self._queued.get(message.id, 0) + 1
        if self._writer is None or self._writer.done():
            self._writer = self._loop.create_task(self._write_queue())

    async def _write_queue(self) -> None:
        while self._queue and not self._closing:
            message = self._queue.popleft()
            if size(message) > MAX_FRAME:
                await self._write_pieces(message)
            else:
                self._write(message)
            left = self._queued.pop(message.id) - 1
            if left:
                self._queued[message.id] = left
        if self._finishing:
            self._finish()

    async def _write_pieces(self, message: Message) -> None:
        self._bulks += 1
        bulk = self._bulks
        self._write(announce(message, bulk))
        for part in (memoryview(message.payload), message.buffer):
            data = part.cast("B") if part is not None else memoryview(b"")
            while len(data) and not self._closing:
                while self._congested and not self._closing:
                    await self._wait()
                count = await self._write_piece(bulk, data)
                data = data[count:]
                await asyncio.sleep(0)  # Others have something to say too.

    async def _write_piece(self, bulk: int, data: memoryview) -> int:
        count = min(len(data), _PIECE)
        if self._ours is not None and count > INLINE:
            block = self._ours.allocate(count)
            if block is None and await self._wait(_PATIENCE) and self._ours is not None:
                block = self._ours.allocate(count)
            if block is not None:
                block.memory[:] = data[:count]
                block.arena.sent(block)
                head = _slab.pack(Kind.PIECE, block.offset, count)
                self._write(Message(SLAB_PIECE, bulk, head))
                return count
        self._write(Message(Kind.PIECE, bulk, data[:MAX_FRAME]))
        return min(len(data), MAX_FRAME)

    async def _wait(self, patience: float | None = None) -> bool:
        """Until there is room in the socket or the arena. False if it took too long."""
        self._progress.clear()
        try:
            async with asyncio.timeout(patience):
                await self._progress.wait()
        except TimeoutError:
            return False
        return True

    def _write(self, message: Message) -> None:
        if self._transport is not None and not self._closing:
            self._transport.write(encode_frame(message))

    # --- fork ------------------------------------------------------------------------------------

    def forget(self) -> None:
        """In a forked child: the connection is the parent's; close the child's copies."""
        self._closing = self._deaf = True
        self._transport = None
        for fd in (self._socket.detach(), self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._pidfd = -1
        Arenas(self._ours, self._theirs).close()


async def connect(sock: socket.socket, arenas: Arenas, peer: int) -> SocketConnection:
    """Take over a connected socket and the arenas."""
    connection = SocketConnection(sock, arenas, peer)
    try:
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: connection, sock)
    except BaseException:
        connection.give_up()
        raise
    return connection


def _open_pidfd(sock: socket.socket, peer: int) -> int:
    """A descriptor that becomes readable when the peer ends, or -1."""
    if peer in (0, os.getpid()) or not hasattr(os, "pidfd_open"):
        return -1
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        os.set_inheritable(fd, False)
    except OSError:
        try:
            fd = os.pidfd_open(peer)
        except OSError:
            return -1
    return fd


def _forget_all() -> None:
    for connection in list(_alive):
        connection.forget()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
