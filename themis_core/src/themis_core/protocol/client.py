"""The client's side: `RemoteBackend`, a `Backend` whose work is done at the other end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from themis_core.errors import BackendClosed, BackendFailed, ModelLoadFailed, ThemisError
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    Done,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)
from themis_core.protocol import codec
from themis_core.protocol.connection import Connection
from themis_core.protocol.frames import Kind, Message
from themis_core.protocol.link import ClientOptions, Link

T = TypeVar("T")
Dial = Callable[[], Awaitable[Connection]]


class RemoteBackend:
    """The backend behind `dial`, which makes one connection. `where` is what errors call it.

    A lost connection fails the requests in flight with `BackendFailed` within milliseconds, and
    the next request connects again, unless that is switched off.
    """

    def __init__(
        self,
        dial: Dial,
        where: str,
        options: ClientOptions | None = None,
        plugin: str | None = None,
    ) -> None:
        self._dial = dial
        self._where = where
        self._options = options or ClientOptions()
        self._plugin = plugin
        self._link: Link | None = None
        self._leaving: list[Link] = []  # The peer takes nothing more on them, but still answers.
        self._dialling: asyncio.Task[Link] | None = None
        self._started = False
        self._info: ModelInfo | None = None

    @property
    def info(self) -> ModelInfo:
        """Facts about the model at the other end. Raises `BackendClosed` unless started."""
        if self._info is None:
            raise self._closed()
        return self._info

    async def start(self) -> None:
        """Connect. Raises `ModelLoadFailed` if nobody answers, or not in this protocol."""
        self._started = True
        try:
            await self._connected()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, BackendFailed):
                raise self._unreachable(error) from error
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request. Closing the generator tells the other end to stop."""
        link = self._link
        if link is None or not link.usable:
            link = await self._connected()
        stream = link.generate(request)
        items, enough = stream.items, link.half_window
        try:
            while True:
                if not items:
                    await stream.arrival()
                event = items.popleft()
                stream.taken += 1
                if stream.taken >= enough:
                    stream.grant()
                yield event
                if type(event) is Done:
                    return
        finally:
            link.release(stream)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """The vectors, as a `Matrix` in the memory in which they came."""
        return await self._call(Kind.EMBED, request, codec.decode_embeddings)

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages."""
        return await self._call(Kind.TOKENIZE, prompt, codec.decode_ids)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        payload, buffer = codec.encode_ids(token_ids)
        link = await self._connected()
        return await link.call(Kind.DETOKENIZE, payload, codec.reader(str), buffer)

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Load an adapter; `path` is one of the other end's."""
        await self._call(Kind.LOAD_ADAPTER, codec.LoadAdapter(name, path, description), _nothing)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        await self._call(Kind.UNLOAD_ADAPTER, name, _nothing)

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """The adapters that the other end has loaded."""
        return await self._call(Kind.ADAPTERS, None, codec.reader(tuple[AdapterWeight, ...]))

    async def stats(self) -> BackendStats:
        """The other end's counters, those of its other clients included."""
        return await self._call(Kind.STATS, None, codec.reader(BackendStats))

    async def drain(self) -> None:
        """Have the other end finish what it does for this client and take nothing more."""
        await self._call(Kind.DRAIN, None, _nothing)

    async def aclose(self) -> None:
        """Disconnect; the other end cancels what it did for this client."""
        self._started = False
        self._info = None
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
            await asyncio.wait([dialling])
        links, self._leaving = [*self._leaving, *filter(None, [self._link])], []
        self._link = None
        for link in links:
            link.fail(self._closed(), at_once=True)
        # Shielded: a cancelled close must still not leave a connection behind.
        await asyncio.shield(asyncio.gather(*(link.wait_closed() for link in links)))

    @property
    def connected(self) -> bool:
        """True while there is a connection that takes requests."""
        return self._link is not None and self._link.usable

    async def wait_lost(self) -> None:
        """Return when the present connection is lost, or none is there."""
        if self._link is not None:
            await self._link.wait_closed()

    def give_up(self, error: ThemisError) -> None:
        """The other end is known to be dead: fail what is in flight with this, now."""
        if self._link is not None:
            self._link.fail(error)

    async def _call(self, kind: Kind, argument: Any, read: Callable[[Message], T]) -> T:
        payload = codec.encode(argument)
        link = await self._connected()
        return await link.call(kind, payload, read)

    async def _connected(self) -> Link:
        if not self._started:
            raise self._closed()
        link = self._link
        if link is not None:
            if link.usable:
                return link
            if not self._options.reconnect:
                raise link.reason()
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._connect(), name=f"dial {self._where}")
            self._dialling.add_done_callback(self._dialled)
        # Shielded: a caller who leaves must not stop what others wait for.
        return await asyncio.shield(self._dialling)

    def _dialled(self, task: asyncio.Task[Link]) -> None:
        if self._dialling is task:
            self._dialling = None
        if not task.cancelled():
            task.exception()  # Whoever waits for it has heard of it; if nobody does, fine.

    async def _connect(self) -> Link:
        old, self._link = self._link, None
        if old is not None:
            self._leaving = [link for link in [*self._leaving, old] if not link.dead]
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                connection = await self._dial()
                link = Link(connection, self._options, self._where, self._plugin)
                self._info = await link.greet()
        except BaseException as error:
            if connection is not None:
                connection.abort("the handshake failed")
                with contextlib.suppress(asyncio.CancelledError):
                    await connection.wait_closed()
            if isinstance(error, TimeoutError | OSError):
                what = "it did not answer in time" if isinstance(error, TimeoutError) else error
                raise BackendFailed(
                    f"The worker at {self._where} cannot be reached: {what}.", plugin=self._plugin
                ) from error
            raise
        self._link = link
        return link

    def _unreachable(self, error: ThemisError) -> ModelLoadFailed:
        return ModelLoadFailed(
            error.message,
            remedy="Start a worker there (`themis worker`), or correct the address.",
            plugin=self._plugin,
        )

    def _closed(self) -> BackendClosed:
        return BackendClosed(f"The connection to {self._where} is not open.", plugin=self._plugin)


def _nothing(message: Message) -> None:
    """The answer to a call that has none."""
