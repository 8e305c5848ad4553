"""The services: `Inference`, typed, one call a request; and `Worker`, the worker protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import msgspec

from themis_core.contracts import Backend
from themis_core.errors import BackendClosed, DeadlineExceeded, Overloaded
from themis_core.messages import EmbedRequest, GenerateEvent, GenerateRequest
from themis_core.protocol import ServerOptions, Session, serve_backend
from themis_core.runtime.gather import gather
from themis_grpc_transport.events import completion_to_proto, embeddings_to_proto, event_to_proto
from themis_grpc_transport.facts import info_to_proto, stats_to_proto
from themis_grpc_transport.requests import (
    adapter_to_proto,
    embed_from_proto,
    prompt_from_proto,
    request_from_proto,
)
from themis_grpc_transport.statuses import abort
from themis_grpc_transport.stream import StreamConnection
from themis_grpc_transport.v1 import themis_pb2 as pb
from themis_grpc_transport.v1 import themis_pb2_grpc as services

T = TypeVar("T")
_AHEAD = 64  # Events of one request that wait for a reader who is slower than the model.


class Inference(services.InferenceServicer):  # type: ignore[misc]
    """Each call is a request of the backend. An error of a call touches no other."""

    def __init__(self, backend: Backend, max_in_flight: int) -> None:
        self._backend = backend
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def drained(self) -> None:
        """Take no more requests; return when those in flight are finished."""
        self._draining = True
        await self._idle.wait()

    # Named, and capitalised, as in the .proto file.
    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Events, as many in one message as are there."""
        try:
            async with self._admitted(), _Ahead(self._events(request, context)) as ahead:
                while batch := await ahead.take():
                    await context.write(pb.GenerateResponse(events=batch))
        # A backend is foreign code: whatever it raises, its caller must hear of it.
        except Exception as error:  # noqa: BLE001
            await abort(context, error)

    async def GenerateOnce(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> pb.Completion:
        """The same, gathered."""

        async def work() -> pb.Completion:
            asked = _timed(request_from_proto(request), context)
            async with self._admitted(), aclosing(self._backend.generate(asked)) as events:
                return completion_to_proto(await gather(events, asked.request_id, asked.model))

        return await _answer(context, work())

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Vectors."""

        async def work() -> pb.EmbedResponse:
            asked: EmbedRequest = embed_from_proto(request)
            async with self._admitted():
                return embeddings_to_proto(await self._backend.embed(asked))

        return await _answer(context, work())

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> Any:  # noqa: N802
        """Token ids."""

        async def work() -> pb.TokenizeResponse:
            ids = await self._backend.tokenize(prompt_from_proto(request))
            return pb.TokenizeResponse(token_ids=ids)

        return await _answer(context, work())

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> Any:  # noqa: N802
        """Text."""

        async def work() -> pb.DetokenizeResponse:
            text = await self._backend.detokenize(tuple(request.token_ids))
            return pb.DetokenizeResponse(text=text)

        return await _answer(context, work())

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> Any:  # noqa: N802
        """Load one of the server's files."""

        async def work() -> pb.LoadAdapterResponse:
            await self._backend.load_adapter(request.name, request.path, request.description)
            return pb.LoadAdapterResponse()

        return await _answer(context, work())

    async def UnloadAdapter(  # noqa: N802
        self, request: pb.UnloadAdapterRequest, context: Any
    ) -> Any:
        """Forget an adapter."""

        async def work() -> pb.UnloadAdapterResponse:
            await self._backend.unload_adapter(request.name)
            return pb.UnloadAdapterResponse()

        return await _answer(context, work())

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Any) -> Any:  # noqa: N802
        """Names and default weights."""

        async def work() -> pb.ListAdaptersResponse:
            found = await self._backend.adapters()
            return pb.ListAdaptersResponse(adapters=[adapter_to_proto(one) for one in found])

        return await _answer(context, work())

    async def GetInfo(self, request: pb.GetInfoRequest, context: Any) -> pb.ModelInfo:  # noqa: N802
        """Facts about the model."""

        async def work() -> pb.ModelInfo:
            return info_to_proto(self._backend.info)

        return await _answer(context, work())

    async def GetStats(self, request: pb.GetStatsRequest, context: Any) -> Any:  # noqa: N802
        """Counters."""

        async def work() -> pb.BackendStats:
            return stats_to_proto(await self._backend.stats())

        return await _answer(context, work())

    def _events(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncGenerator[GenerateEvent, None]:
        return self._backend.generate(_timed(request_from_proto(request), context))

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self._draining:
            raise BackendClosed("The worker is draining and takes no more requests.")
        if self._in_flight >= self._max_in_flight:
            raise Overloaded(
                f"{self._in_flight} requests are in flight, and no more are allowed.",
                remedy="Wait until some are finished.",
            )
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()


class Worker(services.WorkerServicer):  # type: ignore[misc]
    """Each call is a client of the worker protocol, with a session of its own."""

    def __init__(self, backend: Backend, options: ServerOptions) -> None:
        self._backend = backend
        self._options = options
        self._draining = False
        self.sessions: set[Session] = set()

    async def Connect(self, requests: Any, context: Any) -> None:  # noqa: N802
        """One client, until it goes."""
        if self._draining:
            await abort(context, BackendClosed("The worker is stopping."))
        await context.send_initial_metadata(())  # So that the client knows it is connected.
        connection = StreamConnection(context.read, context.write)
        session = serve_backend(connection, self._backend, self._options)
        self.sessions.add(session)
        try:
            await session.wait_ended()
        finally:  # Cancelled: the client is gone.
            connection.abort("the client is gone")
            await session.wait_ended()
            self.sessions.discard(session)

    async def drained(self) -> None:
        """Take nobody and nothing new; return when what runs is finished."""
        self._draining = True
        leaving = BackendClosed("The worker is stopping and takes no more requests.")
        for session in self.sessions:
            session.go_away(leaving)
        await asyncio.gather(*(session.drained() for session in self.sessions))

    async def aclose(self) -> None:
        """Cancel the requests of all clients, and tell them."""
        self._draining = True
        await asyncio.gather(*(session.aclose() for session in list(self.sessions)))


class _Ahead:
    """Reads events while their reader is busy, so that those of a step travel together."""

    def __init__(self, events: AsyncGenerator[GenerateEvent, None]) -> None:
        self._events = events
        self._found: list[pb.Event] = []
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._over = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Ahead:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # Whoever was interested has it from `take`.

    async def take(self) -> list[pb.Event]:
        """All that is there; nothing at the end. Raises what the backend raised."""
        while not (self._found or self._over):
            self._arrived.clear()
            await self._arrived.wait()
        found, self._found = self._found, []
        self._taken.set()
        if not found:
            assert self._task is not None
            await self._task
        return found

    async def _read(self) -> None:
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    while len(self._found) >= _AHEAD:
                        self._taken.clear()
                        await self._taken.wait()
                    self._found.append(event_to_proto(event))
                    self._arrived.set()
        finally:
            self._over = True
            self._arrived.set()


def _timed(request: GenerateRequest, context: Any) -> GenerateRequest:
    """The request with the call's deadline, if that is the earlier. Raises `DeadlineExceeded`."""
    left = context.time_remaining()
    if left is None or (request.timeout is not None and request.timeout <= left):
        return request
    if left <= 0:
        raise DeadlineExceeded("The call's deadline has passed already.", field="timeout")
    return msgspec.structs.replace(request, timeout=left)


async def _answer(context: Any, work: Awaitable[T]) -> T:
    try:
        return await work
    # A backend is foreign code: whatever it raises, its caller must hear of it.
    except Exception as error:  # noqa: BLE001
        await abort(context, error)
