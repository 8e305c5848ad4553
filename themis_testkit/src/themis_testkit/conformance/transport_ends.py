"""What the checks of a transport are made on: a scripted backend, served, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import ClassVar, Self

import pytest

from themis_core.contracts import Backend, BackendServer, Transport
from themis_core.errors import BackendClosed, BackendFailed, ThemisError
from themis_core.messages import (
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    Started,
    Usage,
)
from themis_testkit.conformance.kit import KitBase
from themis_testkit.fakes.scripted import Hold, Script, ScriptedBackend, Step

TransportFactory = Callable[[], tuple[Transport, str]]
Condition = Callable[[], Awaitable[bool]]

# How a request ends whose connection, server or client went away.
Gone = (BackendFailed, BackendClosed)


class Ends:
    """Both ends of a transport: enter it for a started backend, served at `url`."""

    def __init__(self, factory: TransportFactory, backend: Backend) -> None:
        self.transport, self._url = factory()
        self.backend = backend
        self._stack = AsyncExitStack()
        self._server: BackendServer | None = None

    @property
    def server(self) -> BackendServer:
        """The server."""
        assert self._server is not None
        return self._server

    async def client(self) -> Backend:
        """Another client, started; closed at the end."""
        client = self.transport.connect(self.server.url)
        self._stack.push_async_callback(client.aclose)
        await client.start()
        return client

    async def __aenter__(self) -> Self:
        await self.backend.start()
        self._stack.push_async_callback(self.backend.aclose)
        self._server = await self.transport.serve(self.backend, self._url)
        self._stack.push_async_callback(self._server.aclose)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()


class TransportBase(KitBase):
    """The fixture, and running a check."""

    shrinks: ClassVar[bool] = False

    @pytest.fixture
    def transport_factory(self) -> TransportFactory:
        """A function that gives, at each call, a new transport and a URL that nobody serves."""
        raise NotImplementedError("a conformance suite needs the fixture transport_factory")

    def run(self, check: Awaitable[None]) -> None:
        """Run a coroutine with the deadline of the suite."""

        async def main() -> None:
            async with asyncio.timeout(self.deadline):
                await check

        asyncio.run(main())


def ask(number: int = 0, **fields: object) -> GenerateRequest:
    """A request that can be told from others."""
    sampling = SamplingParams(max_tokens=8)
    return GenerateRequest(
        prompt=f"request {number}",
        sampling=sampling,
        request_id=f"r{number}",
        **fields,  # type: ignore[arg-type]
    )


def scripted(script: Script = ()) -> ScriptedBackend:
    """A backend for the far end."""
    return ScriptedBackend(script)


async def events_of(backend: Backend, request: GenerateRequest) -> list[GenerateEvent]:
    """All events, the generator closed."""
    async with aclosing(backend.generate(request)) as events:
        return [event async for event in events]


async def take(events: AsyncGenerator[GenerateEvent, None], count: int) -> list[GenerateEvent]:
    """The next so many events."""
    return [await anext(events) for _ in range(count)]


def held(hold: Hold) -> list[Step]:
    """An answer that stalls after its first piece."""
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    begin: list[Step] = [Started(prompt_tokens=1), Delta(text="a", token_ids=(0,))]
    end: list[Step] = [Delta(text="b", token_ids=(1,)), Finished(reason="stop"), Done(usage=usage)]
    return [*begin, hold, *end]


def said(script: Script) -> list[GenerateEvent]:
    assert not callable(script)
    return [step for step in script if not isinstance(step, Hold | ThemisError)]


def heard(names: Sequence[object], count: int = 1) -> Condition:
    async def enough() -> bool:
        return len(names) >= count

    return enough
