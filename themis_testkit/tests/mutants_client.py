"""`MemoryTransport`, with one fault each at the client; others are in `mutants_server.py`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from themis_core.contracts import Backend
from themis_core.errors import BackendFailed, ModelLoadFailed, ThemisError
from themis_core.messages import (
    BackendStats,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Started,
    Usage,
)
from themis_testkit import MemoryTransport

replace = msgspec.structs.replace


class Client:
    """The client of a good transport; its subclasses have one fault each."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def info(self) -> Any:
        return self.inner.info

    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return request

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [event]

    def raised(self, error: ThemisError) -> ThemisError:
        return error

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        try:
            async with aclosing(self.inner.generate(self.asked(request))) as events:
                async for event in events:
                    for changed in self.passed(event):
                        yield changed
        except ThemisError as error:
            raise self.raised(error) from error


class Transport(MemoryTransport):
    """Clients are of the class `client`."""

    client: type[Client] = Client

    def connect(self, url: str) -> Any:
        return self.client(super().connect(url))


def at_client(client: type[Client]) -> type[Transport]:
    """A transport with a faulty client."""
    return type(client.__name__, (Transport,), {"client": client, "__doc__": client.__doc__})


class DropsLastDelta(Client):
    """the last delta before the end is lost"""

    held: GenerateEvent | None = None

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        if isinstance(event, Delta):
            before, self.held = self.held, event
            return [before] if before else []
        self.held = None
        return [event]


class SwapsDeltas(Client):
    """two deltas arrive in the wrong order"""

    held: GenerateEvent | None = None

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        if isinstance(event, Delta) and self.held is None:
            self.held = event
            return []
        before, self.held = self.held, None
        if before is None:
            return [event]
        return [event, before] if isinstance(event, Delta) else [before, event]


class Repeats(Client):
    """every delta arrives twice"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [event, event] if isinstance(event, Delta) else [event]


class LosesUsage(Client):
    """the usage at the end is all zeros"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [Done(usage=Usage())] if isinstance(event, Done) else [event]


class LosesCachedTokens(Client):
    """`cached_tokens` of `Started` is lost"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [replace(event, cached_tokens=0)] if isinstance(event, Started) else [event]


class LosesMatched(Client):
    """the stop string that ended an answer is lost"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [replace(event, matched=None)] if isinstance(event, Finished) else [event]


class LosesIndex(Client):
    """all choices have the index 0"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [replace(event, index=0)] if isinstance(event, Delta) else [event]


class AsciiOnly(Client):
    """other characters than ASCII become question marks"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        if not isinstance(event, Delta):
            return [event]
        return [replace(event, text=event.text.encode("ascii", "replace").decode())]


class CutsText(Client):
    """a text is cut after 64 Ki characters"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [replace(event, text=event.text[:65536])] if isinstance(event, Delta) else [event]


class Merges(Client):
    """empty deltas are left out"""

    def passed(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [] if event == Delta() else [event]


class LosesTimeout(Client):
    """the timeout of a request does not reach the backend"""

    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, timeout=None)


class LosesTenant(Client):
    """the tenant of a request does not reach the backend"""

    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, tenant=None)


class NewRequestId(Client):
    """the backend sees another request_id"""

    def asked(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, request_id="other")


class OneErrorForAll(Client):
    """every error is `BackendFailed`"""

    def raised(self, error: ThemisError) -> ThemisError:
        return BackendFailed(str(error))


class LosesField(Client):
    """errors lose their field"""

    def raised(self, error: ThemisError) -> ThemisError:
        error.field = None
        return error


class LosesRemedy(Client):
    """errors lose their remedy"""

    def raised(self, error: ThemisError) -> ThemisError:
        error.remedy = None
        return error


class SwallowsBeforeError(Client):
    """what came before an error is lost with it"""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        events = [event async for event in self.inner.generate(request)]
        for event in events:
            yield event


class ErrorEndsQuietly(Client):
    """an error ends the events without being raised"""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        try:
            async for event in self.inner.generate(request):
                yield event
        except ThemisError:
            return


class WorksOn(Client):
    """closing the generator does not cancel at the other end"""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        queue: asyncio.Queue[GenerateEvent | ThemisError | None] = asyncio.Queue()

        async def pump() -> None:
            try:
                async for event in self.inner.generate(request):
                    queue.put_nowait(event)
                queue.put_nowait(None)
            except ThemisError as error:
                queue.put_nowait(error)

        self.pump = asyncio.create_task(pump())
        while (item := await queue.get()) is not None:
            if isinstance(item, ThemisError):
                raise item
            yield item


class OneAtATime(Client):
    """one request of a client waits for the one before to be read"""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.lock = asyncio.Lock()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        async with self.lock:
            async for event in super().generate(request):
                yield event


class StatsOfNobody(Client):
    """stats are always zeros"""

    async def stats(self) -> BackendStats:
        return BackendStats()


class ClosesOnce(Client):
    """closing a client twice raises"""

    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise RuntimeError("it is closed")
        self.closed = True
        await self.inner.aclose()


class StartsAnyway(Client):
    """start succeeds where nobody answers"""

    async def start(self) -> None:
        try:
            await self.inner.start()
        except ModelLoadFailed:
            return


class LeavesFile(Client):
    """each client leaves a file descriptor behind"""

    async def start(self) -> None:
        await self.inner.start()
        os.open(__file__, os.O_RDONLY)


class StopsAtBorder(Client):
    """an answer of more than 512 events is cut"""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        number = 0
        async with aclosing(self.inner.generate(request)) as events:
            async for event in events:
                number += 1
                if number <= 512 or isinstance(event, Finished | Done):
                    yield event


class LeavesTask(Client):
    """each client leaves a task behind"""

    async def start(self) -> None:
        await self.inner.start()
        self.task = asyncio.create_task(asyncio.sleep(3600))


MUTANTS: tuple[type[MemoryTransport], ...] = tuple(
    at_client(client)
    for client in (
        DropsLastDelta,
        SwapsDeltas,
        Repeats,
        LosesUsage,
        LosesCachedTokens,
        LosesMatched,
        LosesIndex,
        AsciiOnly,
        CutsText,
        Merges,
        LosesTimeout,
        LosesTenant,
        NewRequestId,
        OneErrorForAll,
        LosesField,
        LosesRemedy,
        SwallowsBeforeError,
        ErrorEndsQuietly,
        WorksOn,
        OneAtATime,
        StatsOfNobody,
        ClosesOnce,
        StartsAnyway,
        LeavesTask,
        LeavesFile,
        StopsAtBorder,
    )
)
