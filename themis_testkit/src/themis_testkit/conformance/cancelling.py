"""Callers that go away."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from themis_core.contracts import Backend
from themis_testkit.conformance.base import (
    ConformanceBase,
    begin,
    complete,
    eventually,
    idle,
    on_backend,
)

_CROWD = 40


class CancellationChecks(ConformanceBase):
    """`generate`: "Closing the generator, or cancelling the task that waits in it, stops the
    generation within one decode step and frees all it held.".
    """

    @on_backend
    async def test_closing_the_generator_stops_it(self, backend: Backend) -> None:
        """`aclose` of the generator, in the middle of the answer."""
        events = await begin(backend, self.long_request(backend))
        assert (await backend.stats()).running == 1
        await events.aclose()
        await self._stopped_early(backend)
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    @on_backend
    async def test_cancelling_the_task_stops_it(self, backend: Backend) -> None:
        """Cancelling the task that waits for the next event."""
        task = asyncio.create_task(complete(backend, self.long_request(backend)))
        await eventually(lambda: _generating(backend), what="the request has begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self._stopped_early(backend)

    @on_backend
    async def test_closing_after_the_first_event_stops_it(self, backend: Backend) -> None:
        """Closing before any token has been seen."""
        events = backend.generate(self.long_request(backend))
        await anext(events)
        await events.aclose()
        await self._stopped_early(backend)

    @on_backend
    async def test_cancelling_while_it_waits(self, backend: Backend) -> None:
        """A request that waits for room is forgotten at once; the others are not disturbed."""
        requests = [self.long_request(backend) for _ in range(_CROWD)]
        tasks = [asyncio.create_task(complete(backend, request)) for request in requests]
        try:

            async def all_taken_in() -> bool:
                stats = await backend.stats()
                return stats.running + stats.waiting == _CROWD

            await eventually(all_taken_in, what=f"{_CROWD} requests run or wait")
            waiting = (await backend.stats()).waiting
            if not waiting:
                pytest.skip(f"{_CROWD} requests run at once, none waits")
            tasks[-1].cancel()

            async def one_less() -> bool:
                stats = await backend.stats()
                return stats.cancelled == 1 and stats.waiting + stats.running == _CROWD - 1

            await eventually(one_less, what="the cancelled request no longer waits")
            assert (await backend.stats()).failed == 0
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
        await idle(backend)
        await complete(backend, self.request(backend))

    async def _stopped_early(self, backend: Backend) -> None:
        await idle(backend)
        stats = await backend.stats()
        assert stats.completion_tokens < self.long_generation_tokens
        assert (stats.cancelled, stats.finished, stats.failed) == (1, 0, 0)
        await complete(backend, self.request(backend))


async def _generating(backend: Backend) -> bool:
    stats = await backend.stats()
    return stats.running == 1 and stats.completion_tokens > 0
