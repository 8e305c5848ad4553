"""Batches: all that is ready, and no waiting while something is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from themis_openai_server.ready import MAX_BATCH, Ready


async def scripted(*items: Any) -> AsyncGenerator[Any, None]:
    """Yields values, waits for events, raises exceptions."""
    for item in items:
        if isinstance(item, asyncio.Event):
            await item.wait()
        elif isinstance(item, Exception):
            raise item
        else:
            yield item


async def all_batches(ready: Ready[Any]) -> list[list[Any]]:
    batches = []
    while batch := await ready.batch():
        batches.append(batch)
    return batches


def test_what_is_ready_comes_together() -> None:
    async def main() -> None:
        one, two = asyncio.Event(), asyncio.Event()
        ready = Ready(scripted(1, 2, one, 3, two, two, 4, 5))
        assert await ready.batch() == [1, 2]
        one.set()
        assert await ready.batch() == [3]
        waiting = asyncio.create_task(ready.batch())
        await asyncio.sleep(0)
        assert not waiting.done()
        two.set()
        assert await waiting == [4, 5]
        assert await ready.batch() == []
        assert await ready.batch() == []
        await ready.aclose()

    asyncio.run(main())


def test_nothing_is_read_past_the_last() -> None:
    async def main() -> None:
        trace: list[str] = []

        async def events() -> AsyncGenerator[Any, None]:
            yield 1
            yield "last"
            trace.append("read on")

        ready = Ready(events(), last=str)
        assert await ready.batch() == [1, "last"]
        assert await ready.batch() == []
        await ready.aclose()
        assert trace == []

    asyncio.run(main())


def test_many_waits_in_one_step() -> None:
    async def slow() -> AsyncGenerator[int, None]:
        for _ in range(5000):
            await asyncio.sleep(0)
        yield 1

    assert asyncio.run(all_batches(Ready(slow()))) == [[1]]


def test_an_endless_supply_is_cut_into_batches() -> None:
    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        batches = await all_batches(Ready(scripted(*range(MAX_BATCH * 3 + 1))))
        counting.cancel()
        assert [len(batch) for batch in batches] == [MAX_BATCH] * 3 + [1]
        assert turns >= 3

    asyncio.run(main())


def test_an_error_comes_after_the_events_before_it() -> None:
    async def main() -> None:
        ready = Ready(scripted(1, ValueError("x")))
        assert await ready.batch() == [1]
        with pytest.raises(ValueError, match="x"):
            await ready.batch()
        await ready.aclose()
        go = asyncio.Event()
        go.set()
        with pytest.raises(ValueError, match="y"):
            await Ready(scripted(go, ValueError("y"))).batch()

    asyncio.run(main())


@pytest.mark.parametrize("read_first", [0, 1])
def test_closing_runs_the_cleanup_to_its_end(read_first: int) -> None:
    async def main() -> None:
        trace: list[str] = []

        async def events() -> AsyncGenerator[int, None]:
            try:
                yield 1
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                trace.append("cancelled")
                raise
            finally:
                await asyncio.sleep(0)
                trace.append("cleaned")

        ready = Ready(events())
        if read_first:
            assert await ready.batch() == [1]
        await ready.aclose()
        assert trace == (["cancelled", "cleaned"] if read_first else [])
        await ready.aclose()

    asyncio.run(main())


def test_cancelling_the_reader_cancels_the_step() -> None:
    async def main() -> None:
        trace: list[str] = []

        async def events() -> AsyncGenerator[int, None]:
            yield 1
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                trace.append("cleaned")

        async def read() -> None:
            ready = Ready(events())
            try:
                await all_batches(ready)
            finally:
                await ready.aclose()
                trace.append("closed")

        reading = asyncio.create_task(read())
        for _ in range(3):
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert trace == ["cleaned", "closed"]

    asyncio.run(main())


def test_timeouts_inside_the_generator_still_work() -> None:
    async def events() -> AsyncGenerator[str, None]:
        yield "a"
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            yield "late"
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except TimeoutError:
            yield "later"

    assert asyncio.run(all_batches(Ready(events()))) == [["a"], ["late"], ["later"]]
