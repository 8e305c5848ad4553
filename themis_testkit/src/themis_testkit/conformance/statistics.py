"""Counters and gauges."""

from __future__ import annotations

import asyncio
import itertools

from themis_core.contracts import Backend
from themis_core.messages import BackendStats
from themis_testkit.conformance.base import (
    ConformanceBase,
    begin,
    complete,
    idle,
    on_backend,
)

_COUNTERS = (
    "requests",
    "finished",
    "cancelled",
    "failed",
    "prompt_tokens",
    "completion_tokens",
    "steps",
)


class StatisticsChecks(ConformanceBase):
    """`BackendStats`: "Counters since start, and gauges of this moment."."""

    @on_backend
    async def test_a_fresh_backend_has_done_nothing(self, backend: Backend) -> None:
        """All counters begin at 0."""
        stats = await backend.stats()
        assert [getattr(stats, name) for name in _COUNTERS] == [0] * len(_COUNTERS)
        assert stats.running == stats.waiting == stats.kv_used == 0

    @on_backend
    async def test_counters_rise_and_agree(self, backend: Backend) -> None:
        """Counters never fall; at rest they agree with each other and with the usage reported."""
        seen = [await backend.stats()]
        work = asyncio.gather(
            *(complete(backend, self.request(backend, f"{self.prompt} {i}")) for i in range(8))
        )
        while not work.done():
            seen.append(await backend.stats())
            await asyncio.sleep(0.001)
        results = await work
        events = await begin(backend, self.long_request(backend))
        await events.aclose()
        await idle(backend)
        seen.append(await backend.stats())
        for earlier, later in itertools.pairwise(seen):
            _check_rise(earlier, later)
        last = seen[-1]
        assert (last.requests, last.finished, last.cancelled, last.failed) == (9, 8, 1, 0)
        assert last.completion_tokens >= sum(r.usage.completion_tokens for r in results)
        assert last.prompt_tokens >= sum(r.usage.prompt_tokens for r in results)

    @on_backend
    async def test_stats_never_wait(self, backend: Backend) -> None:
        """`stats`: "Never waits for a running request."."""
        events = await begin(backend, self.long_request(backend))
        before = (await backend.stats()).completion_tokens
        async with asyncio.timeout(1.0):
            for _ in range(20):
                await backend.stats()
        assert (await backend.stats()).running == 1
        assert before < self.long_generation_tokens
        await events.aclose()


def _check_rise(earlier: BackendStats, later: BackendStats) -> None:
    for name in _COUNTERS:
        assert getattr(earlier, name) <= getattr(later, name), f"{name} has fallen"
    assert later.running >= 0
    assert later.waiting >= 0
    assert 0 <= later.kv_used <= later.kv_capacity or later.kv_capacity == 0
