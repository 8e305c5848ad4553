"""One live connection of a client: its streams, its calls, its watch over the peer's life."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast

import msgspec

from themis_core.errors import BackendClosed, BackendFailed, DeadlineExceeded, ThemisError
from themis_core.messages import Done, GenerateEvent, GenerateRequest, ModelInfo
from themis_core.protocol import codec
from themis_core.protocol.connection import Connection
from themis_core.protocol.failures import Failure, to_error
from themis_core.protocol.frames import Kind, Message, ProtocolError

T = TypeVar("T")


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a client behaves. Times in seconds.

    `window` is how many events of one request may be under way before its reader has taken them.
    While requests are in flight and nothing has come for `ping_after`, the peer is asked for a
    sign of life; after `dead_after` without one the connection is given up. `deadline_grace` is
    how long after a request's own timeout the client still waits for the server to say so.
    `reconnect` makes a lost connection be made anew by the next request.
    """

    window: int = 64
    connect_timeout: float = 10.0
    ping_after: float = 5.0
    dead_after: float = 60.0
    deadline_grace: float = 0.5
    reconnect: bool = True


class Stream:
    """The events of one request, as they arrive in `items`. Its reader takes them from there.

    The loops over events are the hottest of a client: they touch the fields themselves.
    """

    __slots__ = (
        "_limit",
        "_link",
        "deadline",
        "error",
        "items",
        "number",
        "over",
        "taken",
        "waiter",
    )

    def __init__(self, link: Link, number: int, limit: int) -> None:
        self._link = link
        self._limit = limit
        self.items: deque[GenerateEvent] = deque()
        self.taken = 0
        self.waiter: asyncio.Future[None] | None = None
        self.number = number
        self.error: ThemisError | None = None
        self.over = False
        self.deadline: asyncio.TimerHandle | None = None

    def grant(self) -> None:
        """The reader has taken so many events that the other end may send as many more."""
        if not self.over:
            self._link.grant(self.number, self.taken)
        self.taken = 0

    async def arrival(self) -> None:
        """Wait until there are items. Raises the error that came in their place."""
        while not self.items:
            if self.error is not None:
                raise self.error
            self.waiter = self._link.loop.create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None

    def deliver(self, item: codec.Item) -> None:
        """An event or the end has arrived. Raises `ProtocolError` beyond the credit."""
        kind = type(item)
        if kind is Failure:
            self.fail(to_error(cast(Failure, item)))
            return
        self.items.append(cast(GenerateEvent, item))
        if kind is Done:
            self.over = True
        elif len(self.items) > self._limit:
            raise ProtocolError(f"more than {self._limit} events that nobody has asked for")
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: ThemisError, *, at_once: bool = False) -> None:
        """End with an error: after what has arrived, or at once."""
        if at_once:
            self.items.clear()
        elif self.over:
            return
        self.error = error
        self.over = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Link:
    """Sends requests over a connection and hands out what comes back."""

    def __init__(
        self, connection: Connection, options: ClientOptions, where: str, plugin: str | None
    ) -> None:
        self._connection = connection
        self._options = options
        self._where = where
        self._plugin = plugin
        self.loop = asyncio.get_running_loop()
        self.half_window = max(1, options.window // 2)
        self._streams: dict[int, Stream] = {}
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._last = 0
        self._welcome: asyncio.Future[codec.Welcome] = self.loop.create_future()
        self._error: ThemisError | None = None
        self._leaving: ThemisError | None = None
        self._heard = self.loop.time()
        self._watch: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        """True if new requests may be sent."""
        return self._error is None and self._leaving is None

    @property
    def dead(self) -> bool:
        """True if nothing is to be expected of it any more."""
        return self._error is not None

    def reason(self) -> ThemisError:
        """Why it is not usable: a copy for one caller."""
        return _copy(self._error or self._leaving or BackendClosed("The connection is closed."))

    async def greet(self) -> ModelInfo:
        """Shake hands. Raises `BackendFailed` with the reason if the peer will not."""
        self._connection.start(self)
        hello = codec.Hello(codec.MAGIC, codec.MAJOR, codec.MINOR)
        self._connection.send(Message(Kind.HELLO, 0, codec.encode(hello)))
        return (await self._welcome).info

    def generate(self, request: GenerateRequest) -> Stream:
        """Send a request. Raises `InvalidRequest` if it cannot be expressed."""
        payload, buffer = codec.encode_generate(request, self._options.window)
        if not self.usable:
            raise self.reason()
        # Beyond the window, what needs no credit: `Finished` of each choice, and `Done`.
        stream = Stream(self, self._number(), self._options.window + request.sampling.n + 1)
        self._streams[stream.number] = stream
        if request.timeout is not None:
            wait = request.timeout + self._options.deadline_grace
            stream.deadline = self.loop.call_later(wait, self._expire, stream, request.timeout)
        self._connection.send(Message(Kind.GENERATE, stream.number, payload, buffer))
        self._keep_watch()
        return stream

    def release(self, stream: Stream) -> None:
        """The reader has gone. Twice is fine."""
        if stream.deadline is not None:
            stream.deadline.cancel()
            stream.deadline = None
        if self._streams.pop(stream.number, None) is not None and not stream.over:
            stream.over = True
            self._connection.send(Message(Kind.CANCEL, stream.number))

    def grant(self, number: int, count: int) -> None:
        """Tell the peer that a reader has taken events."""
        self._connection.send(Message(Kind.CREDIT, number, codec.encode(count)))

    async def call(
        self,
        kind: Kind,
        payload: bytes,
        read: Callable[[Message], T],
        buffer: memoryview | None = None,
    ) -> T:
        """A call with one answer, as `read` decodes it. Raises what the other end raised."""
        if not self.usable:
            raise self.reason()
        number = self._number()
        answer: asyncio.Future[Message] = self.loop.create_future()
        self._calls[number] = answer
        self._connection.send(Message(kind, number, payload, buffer))
        self._keep_watch()
        try:
            return read(await answer)
        except ProtocolError as error:
            self.breach(str(error))
            raise self.reason() from error
        finally:
            # Cancelled: the answer may still come; nobody waits for it.
            if self._calls.pop(number, None) is not None and answer.cancelled():
                self._connection.send(Message(Kind.CANCEL, number))

    async def wait_closed(self) -> None:
        """Return when nothing of the connection is left."""
        await self._connection.wait_closed()

    def fail(self, error: ThemisError, *, at_once: bool = False) -> None:
        """The connection is of no use any more: everything in flight fails with this."""
        if self._error is None:
            self._error = error
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(_copy(error), at_once=at_once)
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.done():
                answer.set_exception(_copy(error))
        if not self._welcome.done():
            self._welcome.set_exception(_copy(error))
            self._welcome.exception()  # It may be that nobody waits for it yet.
        self._connection.abort(error.message)

    # --- what the connection calls ---------------------------------------------------------------

    def received(self, message: Message) -> None:
        """A message of the server."""
        self._heard = self.loop.time()
        if self._error is not None:
            return
        try:
            self._obey(message)
        except ProtocolError as error:
            self.breach(str(error))

    def breach(self, reason: str) -> None:
        """The server broke the protocol."""
        self.fail(self._failed(f"broke the protocol: {reason}"))

    def writable(self) -> None:
        """Nothing waits for that here: requests are queued by the connection."""

    def lost(self, reason: str) -> None:
        """The connection has ended."""
        self.fail(self._error or self._leaving or self._failed(f"was lost: {reason}"))

    def _obey(self, message: Message) -> None:
        kind = message.kind
        if kind == Kind.EVENTS:
            self._deliver(message)
        elif kind in (Kind.REPLY, Kind.FAILED):
            self._answer(message)
        elif kind == Kind.WELCOME:
            self._welcomed(message)
        elif kind == Kind.GOAWAY:
            failure: Failure = codec.decode(message, Failure)
            self._leaving = to_error(failure)
            if message.id:
                self.fail(self._leaving, at_once=isinstance(self._leaving, BackendClosed))
        elif kind != Kind.PONG:
            raise ProtocolError(f"a server sent a message of kind {kind}")

    def _deliver(self, message: Message) -> None:
        streams = self._streams
        for number, item in codec.decode_events(message):
            stream = streams.get(number)
            if stream is not None:
                stream.deliver(item)
                if stream.over:
                    del streams[number]
            elif not 0 < number <= self._last:
                raise ProtocolError(f"events for request {number}, which was never made")

    def _answer(self, message: Message) -> None:
        if not 0 < message.id <= self._last:
            raise ProtocolError(f"an answer to request {message.id}, which was never made")
        # Before the call is looked up: if this raises, it still waits, and is failed by that.
        failure: Failure | None = None
        if message.kind == Kind.FAILED:
            failure = codec.decode(message, Failure)
        answer = self._calls.pop(message.id, None)
        if answer is None or answer.done():  # Nobody waits for it any more.
            return
        if failure is None:
            answer.set_result(message)
        else:
            answer.set_exception(to_error(failure))

    def _welcomed(self, message: Message) -> None:
        if self._welcome.done():
            raise ProtocolError("a second welcome")
        welcome: codec.Welcome = codec.decode(message, codec.Welcome)
        if welcome.major != codec.MAJOR:
            raise ProtocolError(f"a welcome in protocol {welcome.major}.{welcome.minor}")
        self._welcome.set_result(welcome)

    # --- watching --------------------------------------------------------------------------------

    def _keep_watch(self) -> None:
        if self._watch is None:
            self._heard = self.loop.time()
            self._watch = self.loop.call_later(self._options.ping_after, self._look)

    def _look(self) -> None:
        self._watch = None
        if self._error is not None or not (self._streams or self._calls):
            return
        silent = self.loop.time() - self._heard
        if silent >= self._options.dead_after:
            self.fail(self._failed(f"has been silent for {silent:.0f} seconds"))
            return
        if silent >= self._options.ping_after:
            self._connection.send(Message(Kind.PING, 0))
        self._watch = self.loop.call_later(self._options.ping_after, self._look)

    def _expire(self, stream: Stream, timeout: float) -> None:
        """The server has not kept the request's own limit, perhaps because it is stuck."""
        stream.deadline = None
        if self._streams.pop(stream.number, None) is not None:
            message = f"The request was not finished within {timeout} seconds."
            stream.fail(DeadlineExceeded(message, field="timeout"), at_once=True)
            self._connection.send(Message(Kind.CANCEL, stream.number))

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _failed(self, what: str) -> BackendFailed:
        return BackendFailed(f"The worker at {self._where} {what}.", plugin=self._plugin)


def _copy(error: ThemisError) -> ThemisError:
    """For each caller its own: a shared one would mix their tracebacks."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own
