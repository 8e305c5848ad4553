"""The server's side: one `Session` for each client, all of them before the same backend."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from themis_core.contracts import Backend
from themis_core.errors import BackendClosed, BackendFailed, InvalidRequest, Overloaded, ThemisError
from themis_core.messages import AdapterWeight, Done, EmbedRequest, Finished, GenerateRequest
from themis_core.protocol import codec
from themis_core.protocol.connection import Connection
from themis_core.protocol.failures import to_failure
from themis_core.protocol.frames import Kind, Message, ProtocolError
from themis_core.protocol.matrix import allocating

_log = logging.getLogger("themis.protocol")

FEATURES: tuple[str, ...] = ()
MAX_CREDIT = 1 << 16


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for each client. `hello_timeout` in seconds: how long it may keep silent at first.

    Without `batch`, each event travels by itself: for measuring what batching saves.
    """

    max_in_flight: int = 4096
    hello_timeout: float = 10.0
    batch: bool = True


class _Stream:
    """A generation on its way to the client."""

    __slots__ = ("credit", "room", "task")

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.room: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None


class Session:
    """One client. Its errors end this session and touch no other; the backend stays open.

    Each generation runs in a task that takes events from the backend as long as the client has
    granted credit for them. All events that come up in one turn of the event loop, which is what
    an engine produces in a step, leave in one message.
    """

    def __init__(
        self, backend: Backend, connection: Connection, options: ServerOptions | None = None
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._options = options or ServerOptions()
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, _Stream] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._outbox: list[tuple[int, codec.Item]] = []
        self._flushing = False
        self._greeted = False
        self._draining: asyncio.Event | None = None
        self._drains: set[int] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._over = False  # Nothing of the client is heard any more.
        self._lost = False
        self._ended = asyncio.Event()
        self._hello_timer = self._loop.call_later(self._options.hello_timeout, self._silent)
        self._answers: dict[int, Callable[[Message], Coroutine[Any, Any, Message]]] = {
            Kind.EMBED: self._embed,
            Kind.TOKENIZE: self._tokenize,
            Kind.DETOKENIZE: self._detokenize,
            Kind.LOAD_ADAPTER: self._load_adapter,
            Kind.UNLOAD_ADAPTER: self._unload_adapter,
            Kind.ADAPTERS: self._adapters,
            Kind.STATS: self._stats,
            Kind.DRAIN: self._drain,
        }

    @property
    def in_flight(self) -> int:
        """Generations and embeddings that are not finished."""
        return len(self._streams) + len(self._calls)

    # --- what the connection calls ---------------------------------------------------------------

    def received(self, message: Message) -> None:
        """A message of the client."""
        if self._over:
            return
        try:
            self._obey(message)
        except ProtocolError as error:
            self.breach(str(error))

    def breach(self, reason: str) -> None:
        """The client broke the protocol: tell it, and end this session alone."""
        if not self._over:
            _log.warning("A client broke the protocol and is disconnected: %s.", reason)
            self._say_goodbye(BackendFailed(f"The worker closed the connection: {reason}."))

    def _obey(self, message: Message) -> None:
        kind = message.kind
        if not self._greeted:
            self._greet(message)
        elif kind == Kind.CREDIT:
            self._credit(message)
        elif kind == Kind.GENERATE:
            self._generate(message)
        elif kind == Kind.CANCEL:
            self._cancel(message.id)
        elif kind == Kind.PING:
            self._connection.send(Message(Kind.PONG, message.id))
        elif kind in self._answers:
            self._call(message)
        else:
            raise ProtocolError(f"a client sent a message of kind {kind}")

    def writable(self) -> None:
        """The client has caught up."""
        self._schedule_flush()

    def lost(self, reason: str) -> None:
        """The client has gone: all that it asked for is cancelled."""
        self._over = True
        self._hello_timer.cancel()
        self._lost = True
        for task in self._running:
            task.cancel()
        if self._running:
            count = len(self._running)
            _log.info("A client has gone with %d requests in flight: %s.", count, reason)
        else:
            self._ended.set()

    # --- what the server calls -------------------------------------------------------------------

    def go_away(self, error: ThemisError) -> None:
        """Tell the client to send no more; what runs goes on."""
        if not self._over:
            self._refuse_new()
            self._connection.send(Message(Kind.GOAWAY, 0, codec.encode(to_failure(error))))

    async def aclose(self, error: ThemisError | None = None) -> None:
        """End the session: its requests are cancelled; their callers hear `error`."""
        if not self._over:
            self._say_goodbye(error or BackendClosed("The server was closed."))
        await self.wait_ended()

    def _say_goodbye(self, error: ThemisError) -> None:
        if self._outbox:  # Congested or not: it is the last.
            self._write_events()
        self._over = True
        self._connection.send(Message(Kind.GOAWAY, 1, codec.encode(to_failure(error))))
        self._connection.close()

    async def drained(self) -> None:
        """Take no more requests; return when those in flight are finished, or the client gone."""
        drained = self._refuse_new()
        self._check_drained()
        await drained.wait()

    async def wait_ended(self) -> None:
        """Return when the connection and all tasks of this session are gone."""
        await self._connection.wait_closed()
        await self._ended.wait()

    # --- messages --------------------------------------------------------------------------------

    def _greet(self, message: Message) -> None:
        if message.kind != Kind.HELLO:
            raise ProtocolError(f"a client began with a message of kind {message.kind}")
        hello: codec.Hello = codec.decode(message, codec.Hello)
        if hello.magic != codec.MAGIC:
            raise ProtocolError(f"a client began with {hello.magic!r}")
        if hello.major != codec.MAJOR:
            raise ProtocolError(
                f"protocol {hello.major}.{hello.minor} is not supported; "
                f"this worker speaks {codec.MAJOR}.{codec.MINOR}"
            )
        try:
            info = self._backend.info
        except ThemisError as error:
            raise ProtocolError(f"the backend is not running: {error}") from error
        self._hello_timer.cancel()
        self._greeted = True
        shared = tuple(feature for feature in FEATURES if feature in hello.features)
        welcome = codec.Welcome(codec.MAJOR, codec.MINOR, shared, info, self._options.max_in_flight)
        self._connection.send(Message(Kind.WELCOME, 0, codec.encode(welcome)))

    def _generate(self, message: Message) -> None:
        number = self._fresh(message)
        try:
            call = codec.decode_generate(message)
            self._admit()
        except ThemisError as error:
            self._post(number, to_failure(error))
            return
        if not 0 < call.credit <= MAX_CREDIT:
            raise ProtocolError(f"a credit of {call.credit} events")
        stream = self._streams[number] = _Stream(call.credit)
        task = stream.task = self._loop.create_task(self._pump(number, stream, call.request))
        # A task that is cancelled before its first step never reaches its own clean-up.
        self._running.add(task)
        task.add_done_callback(partial(self._forget, number))

    def _credit(self, message: Message) -> None:
        more: int = codec.decode(message, int)
        if not 0 < more <= MAX_CREDIT:
            raise ProtocolError(f"a credit of {more} events")
        stream = self._streams.get(message.id)
        if stream is None:  # It has finished meanwhile.
            return
        stream.credit += more
        if stream.credit > 2 * MAX_CREDIT:
            raise ProtocolError("more credit than any client can mean")
        if stream.room is not None and not stream.room.done():
            stream.room.set_result(None)

    def _cancel(self, number: int) -> None:
        stream = self._streams.get(number)
        task = stream.task if stream is not None else self._calls.get(number)
        if task is not None:
            task.cancel()

    def _call(self, message: Message) -> None:
        number = self._fresh(message)
        if message.kind == Kind.EMBED:
            try:
                self._admit()
            except ThemisError as error:
                self._fail(number, error)
                return
        if message.kind == Kind.DRAIN:
            self._drains.add(number)
        task = self._calls[number] = self._loop.create_task(self._answer(number, message))
        self._running.add(task)
        task.add_done_callback(partial(self._forget, number))

    def _fresh(self, message: Message) -> int:
        number = message.id
        if number in self._streams or number in self._calls:
            raise ProtocolError(f"request id {number} is in use already")
        return number

    def _admit(self) -> None:
        if self._draining is not None:
            raise BackendClosed("The worker is draining and takes no more requests.")
        limit = self._options.max_in_flight
        if self.in_flight >= limit:
            raise Overloaded(
                f"This client has {limit} requests in flight, and no more are allowed.",
                remedy="Wait until some are finished.",
            )

    # --- a generation ----------------------------------------------------------------------------

    async def _pump(self, number: int, stream: _Stream, request: GenerateRequest) -> None:
        outcome: codec.Item | None = None
        try:
            async with aclosing(self._backend.generate(request)) as events:
                async for event in events:
                    # The end is free: a client that has read all needs no more credit for it.
                    if stream.credit <= 0 and not isinstance(event, Finished | Done):
                        await self._room(stream)
                    stream.credit -= 1
                    if type(event) is Done:
                        outcome = event
                        continue
                    self._outbox.append((number, event))
                    if not self._flushing:
                        self._schedule_flush()
        except ThemisError as error:
            outcome = to_failure(error)
            if isinstance(error, BackendFailed | BackendClosed):
                self._loop.call_soon(self._examine)
        # A backend is foreign code: whatever it raises, its caller must hear of it.
        except Exception as error:  # noqa: BLE001
            _log.warning("A backend failed in a request.", exc_info=True)
            outcome = to_failure(error)
        finally:
            # Before the end is told: whoever hears of it may use the id again.
            self._streams.pop(number, None)
            if outcome is not None:
                self._post(number, outcome)

    def _examine(self) -> None:
        """A backend that has failed for good can serve no client: tell it, and disconnect."""
        try:
            self._backend.info  # noqa: B018 - it raises once the backend is of no more use.
        except ThemisError as error:
            if not self._over:
                self._say_goodbye(error)

    async def _room(self, stream: _Stream) -> None:
        while stream.credit <= 0:
            stream.room = self._loop.create_future()
            try:
                await stream.room
            finally:
                stream.room = None

    def _post(self, number: int, item: codec.Item) -> None:
        self._outbox.append((number, item))
        if not self._flushing:
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._options.batch:
            self._flush()
        elif self._outbox and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        # Congested: the events stay here, bounded by the credit of their streams.
        if self._outbox and not self._over and not self._connection.congested:
            self._write_events()

    def _write_events(self) -> None:
        outbox, self._outbox = self._outbox, []
        try:
            payload = codec.encode(outbox)
        except ThemisError:
            payload = codec.encode([_sendable(number, item) for number, item in outbox])
        self._connection.send(Message(Kind.EVENTS, 0, payload))

    # --- other calls -----------------------------------------------------------------------------

    async def _answer(self, number: int, message: Message) -> None:
        reply: Message | None = None
        failure: BaseException | None = None
        try:
            with allocating(self._connection.allocate):
                reply = await self._answers[message.kind](message)
        except ProtocolError as error:
            self.breach(str(error))
        # A backend is foreign code: whatever it raises, its caller must hear of it.
        except Exception as error:  # noqa: BLE001
            failure = error
        finally:
            self._calls.pop(number, None)
            if failure is not None:
                self._fail(number, failure)
            elif reply is not None:
                self._connection.send(reply)

    def _fail(self, number: int, error: BaseException) -> None:
        self._connection.send(Message(Kind.FAILED, number, codec.encode(to_failure(error))))

    async def _embed(self, message: Message) -> Message:
        response = await self._backend.embed(codec.decode(message, EmbedRequest))
        payload, buffer, owner = codec.encode_embeddings(response)
        return Message(Kind.REPLY, message.id, payload, buffer, owner)

    async def _tokenize(self, message: Message) -> Message:
        ids = await self._backend.tokenize(codec.decode(message, codec.Prompt))
        payload, buffer = codec.encode_ids(ids)
        return Message(Kind.REPLY, message.id, payload, buffer)

    async def _detokenize(self, message: Message) -> Message:
        text = await self._backend.detokenize(codec.decode_ids(message))
        return _reply(message, text)

    async def _load_adapter(self, message: Message) -> Message:
        call: codec.LoadAdapter = codec.decode(message, codec.LoadAdapter)
        await self._backend.load_adapter(call.name, call.path, call.description)
        return _reply(message, None)

    async def _unload_adapter(self, message: Message) -> Message:
        await self._backend.unload_adapter(codec.decode(message, str))
        return _reply(message, None)

    async def _adapters(self, message: Message) -> Message:
        found: tuple[AdapterWeight, ...] = await self._backend.adapters()
        return _reply(message, found)

    async def _stats(self, message: Message) -> Message:
        return _reply(message, await self._backend.stats())

    async def _drain(self, message: Message) -> Message:
        """Take no more requests; answer when those in flight are finished."""
        await self.drained()
        return _reply(message, None)

    def _refuse_new(self) -> asyncio.Event:
        if self._draining is None:
            self._draining = asyncio.Event()
        return self._draining

    def _check_drained(self) -> None:
        if self._draining is not None and not self._streams and self._calls.keys() <= self._drains:
            self._draining.set()

    # --- the end ---------------------------------------------------------------------------------

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        """A task has ended: what is left of it."""
        stream = self._streams.get(number)
        if stream is not None and stream.task is task:
            del self._streams[number]
        if self._calls.get(number) is task:
            del self._calls[number]
        self._running.discard(task)
        self._check_drained()
        if self._lost and not self._running:
            self._ended.set()

    def _silent(self) -> None:
        seconds = self._options.hello_timeout
        self._connection.abort(f"the client said nothing for {seconds} seconds")


def _reply(message: Message, value: Any) -> Message:
    return Message(Kind.REPLY, message.id, codec.encode(value))


def _sendable(number: int, item: codec.Item) -> tuple[int, codec.Item]:
    """The item, or the failure to send it: an event no codec can express is a defect."""
    try:
        codec.encode(item)
    except InvalidRequest as error:
        return number, to_failure(error)
    return number, item


def serve_backend(
    connection: Connection, backend: Backend, options: ServerOptions | None = None
) -> Session:
    """Serve a started backend on a connection, until that ends or the session is closed."""
    session = Session(backend, connection, options)
    connection.start(session)
    return session
