"""Messages on a stream of bytes: header, payload, buffer; large ones in pieces.

A frame is `HEADER` (lengths of payload and buffer, kind, two reserved fields, id), the payload
(msgpack) and the buffer (raw bytes). A message above `MAX_FRAME` is announced by a `BULK` frame and
follows in `PIECE` frames, between which other messages may travel. Nothing is allocated on the
strength of a claimed length: a region for pieces is reserved from the kernel, page by page as it
is filled.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import msgspec

HEADER = struct.Struct("<IIBBHQ")
MAX_FRAME = 1 << 20
MAX_MESSAGE = 1 << 30
MAX_BULKS = 256
_SMALL = 1 << 16


class Kind(IntEnum):
    """What a message is. Kinds from `FIRST_PRIVATE` on belong to the transport that carries it."""

    HELLO = 1
    WELCOME = 2
    GOAWAY = 3
    GENERATE = 10
    EMBED = 11
    TOKENIZE = 12
    DETOKENIZE = 13
    LOAD_ADAPTER = 14
    UNLOAD_ADAPTER = 15
    ADAPTERS = 16
    STATS = 17
    DRAIN = 18
    REPLY = 30
    FAILED = 31
    EVENTS = 32
    CANCEL = 40
    CREDIT = 41
    PING = 50
    PONG = 51
    BULK = 100
    PIECE = 101


FIRST_PRIVATE = 128


class ProtocolError(Exception):
    """The peer broke the protocol. It ends that connection and nothing else."""


class Message(NamedTuple):
    """One message. `buffer` is raw memory that goes along with the payload.

    `owner` is what keeps `buffer` alive; a transport that lent the memory knows it by it.
    """

    kind: int
    id: int
    payload: bytes | bytearray | memoryview = b""
    buffer: memoryview | None = None
    owner: object = None


class Bulk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The announcement of a message in pieces."""

    kind: int
    id: int
    payload: int
    buffer: int


_HEADER_SIZE = HEADER.size
_IN_PIECES = (int(Kind.BULK), int(Kind.PIECE))
_unpack = HEADER.unpack_from
_encoder = msgspec.msgpack.Encoder()
_bulks = msgspec.msgpack.Decoder(Bulk)


def encode_frame(message: Message) -> bytes:
    """The bytes of a message of at most `MAX_FRAME`."""
    kind, number, payload, buffer, _ = message
    if buffer is None:
        return HEADER.pack(len(payload), 0, kind, 0, 0, number) + payload
    return b"".join(
        (HEADER.pack(len(payload), buffer.nbytes, kind, 0, 0, number), payload, buffer.cast("B"))
    )


def size(message: Message) -> int:
    """Bytes of payload and buffer."""
    return len(message.payload) + (message.buffer.nbytes if message.buffer is not None else 0)


def announce(message: Message, bulk: int) -> Message:
    """The frame that precedes the pieces of a large message."""
    buffer = 0 if message.buffer is None else message.buffer.nbytes
    body = Bulk(message.kind, message.id, len(message.payload), buffer)
    return Message(Kind.BULK, bulk, _encoder.encode(body))


def pieces(message: Message, bulk: int, limit: int = MAX_FRAME) -> Iterator[Message]:
    """The pieces of a large message, in order."""
    for part in (memoryview(message.payload), message.buffer):
        if part is not None:
            data = part.cast("B")
            for start in range(0, len(data), limit):
                yield Message(Kind.PIECE, bulk, data[start : start + limit])


class Assembly:
    """Puts large messages together again. One for each direction of a connection."""

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max_message = max_message
        self._open: dict[int, _Region] = {}

    def begin(self, message: Message) -> Message | None:
        """Take a `BULK` message. Raises `ProtocolError`."""
        try:
            bulk = _bulks.decode(message.payload)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"a bulk announcement cannot be read: {error}") from error
        total = bulk.payload + bulk.buffer
        if bulk.payload < 0 or bulk.buffer < 0 or not 0 < total <= self._max_message:
            raise ProtocolError(
                f"a message of {total} bytes was announced; at most {self._max_message} are allowed"
            )
        if message.id in self._open:
            raise ProtocolError(f"bulk {message.id} was announced twice")
        reserved = sum(region.total for region in self._open.values())
        if len(self._open) >= MAX_BULKS or reserved + total > 2 * self._max_message:
            raise ProtocolError("too many large messages at once")
        if bulk.kind in (Kind.BULK, Kind.PIECE) or bulk.kind >= FIRST_PRIVATE:
            raise ProtocolError(f"kind {bulk.kind} cannot come in pieces")
        self._open[message.id] = _Region(bulk, total)
        return None

    def room(self, bulk: int, length: int) -> memoryview:
        """Where the next `length` bytes of a bulk belong. Raises `ProtocolError`."""
        region = self._open.get(bulk)
        if region is None:
            raise ProtocolError(f"a piece of bulk {bulk}, which was never announced")
        return region.room(length)

    def filled(self, bulk: int, length: int) -> Message | None:
        """`length` bytes have been written; the message, if it is complete."""
        region = self._open[bulk]
        region.filled += length
        if region.filled < region.total:
            return None
        del self._open[bulk]
        return region.message()


class _Region:
    def __init__(self, bulk: Bulk, total: int) -> None:
        self.total = total
        self.filled = 0
        self._bulk = bulk
        self._memory = _reserve(total)

    def room(self, length: int) -> memoryview:
        if not 0 < length <= self.total - self.filled:
            raise ProtocolError("a piece is longer than what was announced")
        return self._memory[self.filled : self.filled + length]

    def message(self) -> Message:
        bulk, memory = self._bulk, self._memory
        buffer = memory[bulk.payload :].toreadonly() if bulk.buffer else None
        return Message(bulk.kind, bulk.id, memory[: bulk.payload], buffer)


def _reserve(total: int) -> memoryview:
    """Memory whose pages come when they are written: a claimed length alone costs nothing."""
    try:
        if hasattr(mmap, "MAP_PRIVATE"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            return memoryview(mmap.mmap(-1, total, flags=flags))
        return memoryview(mmap.mmap(-1, total))
    except OSError as error:
        raise ProtocolError(f"no memory for a message of {total} bytes: {error}") from error


class FrameReader:
    """Cuts received bytes into messages: `buffer()`, receive into it, `received(count)`.

    Small frames are copied out of one buffer; pieces of large messages are received where they
    belong.
    """

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self.assembly = Assembly(max_message)
        self._memory = bytearray(2 * _SMALL)
        self._view = memoryview(self._memory)
        self._begin = self._end = 0
        self._piece: int | None = None
        self._room = memoryview(b"")

    def buffer(self) -> memoryview:
        """Where to receive: never empty."""
        if self._piece is not None:
            return self._room
        return self._view[self._end :]

    def received(self, count: int) -> list[Message]:
        """`count` bytes have been received; the messages that are complete.

        Raises `ProtocolError`; the reader cannot be used any more then.
        """
        messages: list[Message] = []
        if self._piece is not None:
            self._fill(count, messages)
            return messages
        self._end += count
        self._take_small(messages)
        while self._next(messages):
            self._take_small(messages)
        self._tidy()
        return messages

    def _take_small(self, messages: list[Message]) -> None:
        """Take what most frames are: complete, without a buffer, without anything special."""
        memory, begin, end = self._memory, self._begin, self._end
        while end - begin >= _HEADER_SIZE:
            payload, buffer, kind, flags, reserved, number = _unpack(memory, begin)
            stop = begin + _HEADER_SIZE + payload
            if buffer or flags or reserved or stop > end or kind in _IN_PIECES:
                break
            messages.append(Message(kind, number, memory[begin + _HEADER_SIZE : stop]))
            begin = stop
        self._begin = begin

    def _fill(self, count: int, messages: list[Message]) -> None:
        piece = self._piece
        assert piece is not None
        complete = self.assembly.filled(piece, count)
        self._room = self._room[count:]
        if not self._room:
            self._piece = None
        if complete is not None:
            messages.append(complete)

    def _next(self, messages: list[Message]) -> bool:
        """Take one frame from the buffer, if it is there."""
        start = self._begin + HEADER.size
        if start > self._end:
            return False
        payload, buffer, kind, flags, reserved, number = HEADER.unpack_from(
            self._memory, self._begin
        )
        total = payload + buffer
        if flags or reserved:
            raise ProtocolError("a frame has reserved bits set")
        if total > MAX_FRAME:
            raise ProtocolError(f"a frame of {total} bytes; at most {MAX_FRAME} are allowed")
        if kind == Kind.PIECE:
            return self._begin_piece(number, payload, buffer, start, messages)
        if start + total > self._end:
            if start + total > len(self._memory):
                self._grow(HEADER.size + total)
            return False
        middle, end = start + payload, start + total
        message = Message(
            kind,
            number,
            bytes(self._view[start:middle]),
            memoryview(bytes(self._view[middle:end])) if buffer else None,
        )
        self._begin = end
        if kind == Kind.BULK:
            self.assembly.begin(message)
        else:
            messages.append(message)
        return True

    def _begin_piece(
        self, number: int, payload: int, buffer: int, start: int, messages: list[Message]
    ) -> bool:
        if buffer:
            raise ProtocolError("a piece has a buffer")
        room = self.assembly.room(number, payload)
        here = min(self._end - start, payload)
        room[:here] = self._view[start : start + here]
        self._begin = start + here
        self._piece, self._room = number, room
        self._fill(here, messages)
        return self._piece is None

    def _grow(self, needed: int) -> None:
        """A larger buffer for one frame; `_tidy` makes it small again."""
        waiting = self._end - self._begin
        memory = bytearray(needed)
        memory[:waiting] = self._view[self._begin : self._end]
        self._memory, self._view = memory, memoryview(memory)
        self._begin, self._end = 0, waiting

    def _tidy(self) -> None:
        """Move what is left to the front, so that there is room behind it."""
        waiting = self._end - self._begin
        if not waiting:
            if len(self._memory) > 2 * _SMALL:
                self._memory = bytearray(2 * _SMALL)
                self._view = memoryview(self._memory)
            self._begin = self._end = 0
        elif self._begin and (self._begin > _SMALL or self._end == len(self._memory)):
            self._view[:waiting] = bytes(self._view[self._begin : self._end])
            self._begin, self._end = 0, waiting
