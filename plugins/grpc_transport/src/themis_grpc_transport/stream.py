"""A bidirectional gRPC stream as a `Connection` of the worker protocol.

gRPC has a task write at a time, one message after the other. What comes up while one is under way
leaves in the next, together: the longer the way, the larger the messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from themis_core.protocol import (
    FIRST_PRIVATE,
    MAX_FRAME,
    Allocation,
    FrameReader,
    Message,
    ProtocolError,
    Receiver,
    announce,
    encode_frame,
    pieces,
    size,
)
from themis_grpc_transport.statuses import reason_of
from themis_grpc_transport.v1 import themis_pb2 as pb

_CONGESTED = 1 << 18
_CUT = 3 << 18  # Bytes of one gRPC message; the smallest limit that can be set is 1 MiB.
_PIECE = 1 << 19
_GOODBYE = 2.0  # Seconds that a peer has to read what is sent last.
_BULK = 1 << 16  # From here on a message waits behind others, unless it belongs before them.


class Ending(NamedTuple):
    """How a client ends its call: `hang_up` says that nothing more is written, `close` is last.

    In between the server ends the call. To cancel it would leave tasks of gRPC's behind.
    """

    hang_up: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]


class StreamConnection:
    """One peer. `read` gives `grpc.aio.EOF` at the end. A server's call ends with its method."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[pb.Frames], Awaitable[None]],
        ending: Ending | None = None,
    ) -> None:
        self._read, self._write, self._ending = read, write, ending
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._reader = FrameReader()
        self._small: list[bytes] = []
        self._pending = 0  # Bytes that gRPC has not taken yet.
        self._large: deque[Message] = deque()
        self._behind: dict[int, int] = {}  # By id: how many messages wait in `_large`.
        self._pieces: Iterator[Message] = iter(())
        self._bulks = 0
        self._wake: asyncio.Future[None] | None = None
        self._deaf = False
        self._finishing = False
        self._reason = ""
        self._over = self._loop.create_future()
        self._life: asyncio.Task[None] | None = None

    @property
    def congested(self) -> bool:
        """True while gRPC takes no more."""
        return self._pending > _CONGESTED

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver."""
        self._receiver = receiver
        self._life = self._loop.create_task(self._live(receiver), name="themis grpc connection")

    def send(self, message: Message) -> None:
        """Queue a message."""
        if self._over.done() or self._finishing:
            return
        if size(message) > _BULK or message.id in self._behind:
            self._large.append(message)
            self._behind[message.id] = self._behind.get(message.id, 0) + 1
        else:
            self._put(message)
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    def allocate(self, size: int) -> Allocation | None:
        """There is no shared memory."""
        return None

    def close(self) -> None:
        """End after what was sent."""
        self._finishing = True
        self._loop.call_later(_GOODBYE, self.abort, "the other end did not read")
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def abort(self, reason: str) -> None:
        """End at once."""
        self._deaf = True
        self._reason = self._reason or reason
        if not self._over.done():
            self._over.set_result(None)

    async def wait_closed(self) -> None:
        """Return when the call has ended."""
        if self._life is None:  # It was never started.
            self._life = self._loop.create_task(self._hang_up(set()))
        # Shielded: whoever waits may be cancelled; the connection ends all the same.
        await asyncio.shield(self._life)

    # --- its tasks -------------------------------------------------------------------------------

    async def _live(self, receiver: Receiver) -> None:
        tasks = {
            self._loop.create_task(self._read_all()),
            self._loop.create_task(self._write_all()),
        }
        try:
            await asyncio.wait([*tasks, self._over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._deaf = self._finishing = True
            if not self._over.done():
                self._over.set_result(None)
            self._small.clear()
            self._large.clear()
            self._pieces = iter(())
            if self._wake is not None and not self._wake.done():
                self._wake.set_result(None)
            await self._hang_up(tasks)
            receiver.lost(self._reason or "the other end closed it")

    async def _hang_up(self, tasks: set[asyncio.Task[None]]) -> None:
        """End the call, and the tasks that read and write."""
        if self._ending is not None and not all(task.done() for task in tasks):
            with suppress(grpc.aio.BaseError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(_GOODBYE):
                    await self._ending.hang_up()
            await asyncio.wait(tasks, timeout=_GOODBYE)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._ending is not None:
            await self._ending.close()

    async def _read_all(self) -> None:
        """Deliver until the peer ends its side."""
        try:
            while True:
                try:
                    frames = await self._read()
                except DecodeError:
                    self._refuse("what came is no message of Protobuf")
                    continue
                if frames is grpc.aio.EOF:
                    return
                if not self._deaf:
                    self._take(frames.data)
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            self._reason = self._reason or reason_of(error)

    def _take(self, data: bytes) -> None:
        receiver = self._receiver
        assert receiver is not None
        rest = memoryview(data)
        try:
            while rest and not self._deaf:
                room = self._reader.buffer()
                count = min(len(room), len(rest))
                room[:count] = rest[:count]
                rest = rest[count:]
                for message in self._reader.received(count):
                    if message.kind >= FIRST_PRIVATE:
                        raise ProtocolError(f"a message of unknown kind {message.kind}")
                    receiver.received(message)
        except ProtocolError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        if not self._deaf and self._receiver is not None:
            self._deaf = True
            self._receiver.breach(reason)

    async def _write_all(self) -> None:
        """Write what is queued, as much at once as there is."""
        try:
            while True:
                self._add_large()
                if self._small:
                    await self._flush()
                elif self._finishing:
                    return
                else:
                    self._wake = self._loop.create_future()
                    await self._wake
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            # The call has ended: the reader hears of it too, and knows more of why.
            await asyncio.wait([self._over], timeout=_GOODBYE)
            self._reason = self._reason or reason_of(error)

    async def _flush(self) -> None:
        congested = self.congested
        taken, self._small = self._small, []
        data = b"".join(taken)
        for start in range(0, len(data), _CUT):
            part = data[start : start + _CUT]
            await self._write(pb.Frames(data=part))
            self._pending -= len(part)
        if congested and not self.congested and self._receiver is not None:
            self._receiver.writable()

    def _put(self, message: Message) -> None:
        frame = encode_frame(message)
        self._small.append(frame)
        self._pending += len(frame)

    def _add_large(self) -> None:
        """One piece of what is large: others have something to say too."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._put(piece)
        elif self._large:
            message = self._large.popleft()
            if size(message) > MAX_FRAME:
                self._bulks += 1
                self._put(announce(message, self._bulks))
                self._pieces = self._cut(message, self._bulks)
            else:
                self._put(message)
                self._written(message)

    def _cut(self, message: Message, bulk: int) -> Iterator[Message]:
        yield from pieces(message, bulk, _PIECE)
        self._written(message)

    def _written(self, message: Message) -> None:
        left = self._behind.pop(message.id) - 1
        if left:
            self._behind[message.id] = left
