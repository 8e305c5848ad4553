from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.contracts import Cache, Quota, Validator
from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    DeadlineExceeded,
    ModelFileInvalid,
    QuotaExceeded,
    RequestRejected,
)
from themis_core.messages import (
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Started,
    Usage,
)
from themis_testkit import FakeCache, FakeQuota, FakeValidator, Hold, ScriptedBackend
from themis_testkit.conformance import BackendFactory
from themis_testkit.conformance.cancelling import CancellationChecks
from themis_testkit.conformance.lifecycle import LifecycleChecks
from themis_testkit.conformance.statistics import StatisticsChecks
from themis_testkit.fakes import say

REQUEST = GenerateRequest(prompt="Hello")


def countdown(request: GenerateRequest) -> Iterator[GenerateEvent]:
    """As many tokens as are asked for."""
    count = request.sampling.max_tokens or 1
    yield Started(prompt_tokens=1)
    for i in range(count):
        yield Delta(text="x", token_ids=(i,))
    yield Finished(reason="length")
    yield Done(usage=Usage(prompt_tokens=1, completion_tokens=count))


class TestScripted(LifecycleChecks, CancellationChecks, StatisticsChecks):
    """The checks that do not depend on what is said."""

    @pytest.fixture
    def backend_factory(self) -> BackendFactory:
        return lambda: ScriptedBackend(countdown)

    @pytest.fixture
    def broken_backend_factory(self) -> BackendFactory:
        return lambda: ScriptedBackend(start_error=ModelFileInvalid("no such file"))


async def started(*script: GenerateEvent | Hold | BackendFailed) -> ScriptedBackend:
    backend = ScriptedBackend(script)
    await backend.start()
    return backend


async def play(backend: ScriptedBackend, request: GenerateRequest = REQUEST) -> str:
    async with aclosing(backend.generate(request)) as events:
        return "".join([event.text async for event in events if isinstance(event, Delta)])


def test_it_says_what_is_written() -> None:
    async def main() -> None:
        backend = await started(*say("Hel", "lo"))
        assert await play(backend) == "Hello"
        assert backend.requests == [REQUEST]
        assert backend.finished == [REQUEST.request_id]
        assert backend.cancelled == []

    asyncio.run(main())


def test_it_holds_until_released() -> None:
    async def main() -> None:
        hold = Hold()
        first, *rest = say("Hello")
        backend = await started(first, hold, *rest)
        task = asyncio.create_task(play(backend))
        await hold.reached()
        assert (await backend.stats()).running == 1
        hold.release()
        assert await task == "Hello"
        assert await play(backend) == "Hello"

    asyncio.run(main())


def test_it_fails_midway() -> None:
    async def main() -> None:
        error = BackendFailed("the cable is cut")
        backend = await started(*say("Hello")[:2], error)
        for _ in range(2):
            with pytest.raises(BackendFailed, match="cable") as caught:
                await play(backend)
            assert caught.value is not error
        assert (await backend.stats()).failed == 2
        assert backend.finished == backend.cancelled == []

    asyncio.run(main())


def test_it_records_cancellation() -> None:
    async def main() -> None:
        hold = Hold()
        backend = await started(hold)
        task = asyncio.create_task(play(backend))
        await hold.reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.cancelled == [REQUEST.request_id]

    asyncio.run(main())


def test_a_hold_ends_with_the_timeout_or_the_backend() -> None:
    async def main() -> None:
        hold = Hold()
        backend = await started(hold)
        with pytest.raises(DeadlineExceeded):
            await play(backend, msgspec.structs.replace(REQUEST, timeout=0.01))
        task = asyncio.create_task(play(backend))
        await hold.reached()
        await backend.aclose()
        with pytest.raises(BackendClosed):
            await task

    asyncio.run(main())


def test_fake_cache() -> None:
    async def main() -> None:
        cache: Cache = (fake := FakeCache())
        assert await cache.get(b"k") is None
        await cache.put(b"k", b"v")
        assert await cache.get(b"k") == b"v"
        await cache.aclose()
        assert (fake.gets, fake.puts, fake.closes) == ([b"k", b"k"], [b"k"], 1)

    asyncio.run(main())


def test_fake_quota() -> None:
    async def main() -> None:
        quota: Quota = (fake := FakeQuota(grants=2))
        first, second = [await quota.reserve(REQUEST) for _ in range(2)]
        with pytest.raises(QuotaExceeded):
            await quota.reserve(REQUEST)
        await first.settle(Usage(prompt_tokens=3))
        await second.release()
        assert [r.settled for r in fake.reservations] == [Usage(prompt_tokens=3), None]
        assert not any(reservation.open for reservation in fake.reservations)
        with pytest.raises(AssertionError):
            await second.release()
        await quota.aclose()
        assert fake.closes == 1

    asyncio.run(main())


@given(st.lists(st.text("abc", max_size=4)), st.text("abc", min_size=1, max_size=3))
def test_fake_validator_judges_the_stream_as_the_text(pieces: list[str], forbidden: str) -> None:
    fake = FakeValidator(forbidden)
    validator: Validator = fake
    check = validator.check_output(REQUEST)
    assert check is not None
    sent = ""
    try:
        for piece in pieces:
            sent += check.push(piece)
        sent += check.finish()
    except RequestRejected:
        assert forbidden in "".join(pieces)
        assert forbidden not in sent
    else:
        assert sent == "".join(pieces) == fake.outputs[0]
        assert forbidden not in sent


def test_fake_validator_judges_prompts() -> None:
    async def main() -> None:
        fake = FakeValidator("secret")
        assert await fake.check_input(REQUEST) is REQUEST
        with pytest.raises(RequestRejected):
            await fake.check_input(GenerateRequest(prompt="the secret"))
        assert len(fake.inputs) == 2
        await fake.aclose()
        assert fake.closes == 1

    asyncio.run(main())
