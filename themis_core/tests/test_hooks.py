"""Calls of validators, quotas and caches: their budgets, both failure modes, and their figures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from themis_core.contracts import Budget
from themis_core.errors import (
    BackendFailed,
    DeadlineExceeded,
    HookTimeout,
    InternalError,
    QuotaExceeded,
    RequestRejected,
)
from themis_core.messages import Delta, GenerateRequest, Usage
from themis_core.runtime import HookStats, ModelSource, Runtime
from themis_core.runtime.guards import GuardedQuota, GuardedValidator, guarded_cache
from themis_core.runtime.hooks import Hook
from themis_testkit.fakes import (
    FakeCache,
    FakeQuota,
    FakeReservation,
    FakeValidator,
    Hold,
    ScriptedBackend,
    say,
)

ASK = GenerateRequest(prompt="hi")
SHORT = 0.005
OPEN = Budget(timeout=SHORT, on_failure="open")
CLOSED = Budget(timeout=SHORT, on_failure="closed")
LONG_OPEN = Budget(timeout=3600, on_failure="open")
LONG_CLOSED = Budget(timeout=3600)


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


async def for_ever() -> None:
    await asyncio.Event().wait()


def runtime(
    validators: dict[str, tuple[Any, Budget]] | None = None,
    quota: tuple[Any, Budget] | None = None,
    backend: ScriptedBackend | None = None,
) -> Runtime:
    backend = backend or ScriptedBackend(say("an", "swer"))
    source = ModelSource(backend="scripted", make=lambda: backend)
    guards = [
        GuardedValidator(plugin, Hook(f"validators.{name}", budget, name))
        for name, (plugin, budget) in (validators or {}).items()
    ]
    guard = quota and GuardedQuota(quota[0], Hook("quota", quota[1], "counting"))
    return Runtime({"m": source}, default="m", validators=guards, quota=guard)


def figures(r: Runtime, hook: str, call: str) -> HookStats:
    return next(found for found in r.hook_stats() if (found.hook, found.call) == (hook, call))


class Asked(FakeValidator):
    """Does what it is told when a prompt is to be judged."""

    def __init__(self, what: Callable[[], Awaitable[None]]) -> None:
        super().__init__("forbidden")
        self.what = what
        self.cancelled = 0

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        try:
            await self.what()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().check_input(request)


class Places(FakeQuota):
    """One place; `what[call]` is done while it is held, or being given back."""

    def __init__(self, **what: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.what = what
        self.free = 1

    async def reserve(self, request: GenerateRequest) -> Place:
        if not self.free:
            raise QuotaExceeded("The place is taken.")
        self.free -= 1
        try:
            await self.do("reserve")
        except BaseException:
            self.free += 1
            raise
        return Place(self, request)

    async def do(self, call: str) -> None:
        if call in self.what:
            await self.what[call]()


class Place(FakeReservation):
    def __init__(self, quota: Places, request: GenerateRequest) -> None:
        super().__init__(request)
        self.quota = quota

    async def settle(self, usage: Usage) -> None:
        await super().settle(usage)
        self.quota.free += 1
        await self.quota.do("settle")

    async def release(self) -> None:
        await super().release()
        self.quota.free += 1
        await self.quota.do("release")


async def broken() -> None:
    raise ConnectionError("nobody there")


async def troubled() -> None:
    raise BackendFailed("The judge has failed.")


# --- validators ----------------------------------------------------------------------------------


def test_a_validator_that_hangs_ends_the_request_if_it_is_closed() -> None:
    async def body() -> None:
        backend, hanging = ScriptedBackend(say("a")), Asked(for_ever)
        async with runtime({"v": (hanging, CLOSED)}, backend=backend) as r:
            with pytest.raises(HookTimeout, match=r"validators\.v .* 0\.005 seconds") as caught:
                await r.complete(ASK)
            assert (caught.value.plugin, caught.value.retryable) == ("v", True)
            seen = figures(r, "validators.v", "check_input")
            assert (seen.timeouts, seen.failures, sum(seen.seconds.counts)) == (1, 0, 1)
            assert seen.seconds.total >= SHORT
        assert hanging.cancelled == 1
        assert not backend.starts

    run(body)


def test_a_validator_that_hangs_is_passed_over_if_it_is_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body() -> None:
        hanging, later = Asked(for_ever), FakeValidator("forbidden")
        async with runtime({"v": (hanging, OPEN), "w": (later, CLOSED)}) as r:
            assert (await r.complete(ASK)).text == "answer"
            assert figures(r, "validators.v", "check_input").timeouts == 1
            assert figures(r, "validators.w", "check_input").timeouts == 0
        assert hanging.cancelled == 1
        assert [request.prompt for request in later.inputs] == ["hi"]

    run(body)
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "validators.v (check_input)" in record.message
    assert "goes on without it" in record.message


@pytest.mark.parametrize("budget", [LONG_OPEN, LONG_CLOSED])
def test_a_refusal_is_an_answer_in_both_modes(budget: Budget) -> None:
    async def body() -> None:
        async with runtime({"v": (FakeValidator("hi"), budget)}) as r:
            with pytest.raises(RequestRejected):
                await r.complete(ASK)
            assert figures(r, "validators.v", "check_input").failures == 0
        async with runtime({"v": (FakeValidator("swer"), budget)}) as r:
            with pytest.raises(RequestRejected):
                await r.complete(ASK)
        async with runtime(quota=(FakeQuota(0), budget)) as r:
            with pytest.raises(QuotaExceeded):
                await r.complete(ASK)

    run(body)


@pytest.mark.parametrize(
    ("what", "kind"), [(broken, InternalError), (troubled, BackendFailed)], ids=["any", "ours"]
)
def test_a_validator_that_fails(what: Callable[[], Awaitable[None]], kind: type[Exception]) -> None:
    async def body() -> None:
        async with runtime({"v": (Asked(what), LONG_CLOSED)}) as r:
            with pytest.raises(kind) as caught:
                await r.complete(ASK)
            if kind is InternalError:
                assert isinstance(caught.value.__cause__, ConnectionError)
                assert "nobody there" not in str(caught.value)  # The log tells; clients need not.
            assert figures(r, "validators.v", "check_input").failures == 1
        async with runtime({"v": (Asked(what), LONG_OPEN)}) as r:
            assert (await r.complete(ASK)).text == "answer"
            assert figures(r, "validators.v", "check_input").failures == 1

    run(body)


def test_a_validator_that_returns_no_request() -> None:
    class Forgetful(FakeValidator):
        async def check_input(self, request: GenerateRequest) -> GenerateRequest:
            await super().check_input(request)
            return None  # type: ignore[return-value]

    async def body() -> None:
        async with runtime({"v": (Forgetful("x"), LONG_CLOSED)}) as r:
            with pytest.raises(InternalError):
                await r.complete(ASK)
        async with runtime({"v": (Forgetful("x"), LONG_OPEN)}) as r:
            assert (await r.complete(ASK)).text == "answer"

    run(body)


# --- cancelling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [LONG_OPEN, LONG_CLOSED])
def test_a_caller_that_leaves_cancels_the_hook(budget: Budget) -> None:
    async def body() -> None:
        begun = asyncio.Event()

        async def begin() -> None:
            begun.set()
            await for_ever()

        hanging = Asked(begin)
        backend = ScriptedBackend(say("a"))
        async with runtime({"v": (hanging, budget)}, backend=backend) as r:
            task = asyncio.create_task(r.complete(ASK))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert hanging.cancelled == 1
        assert not backend.starts  # Open does not mean that a cancelled request goes on.

    run(body)


@pytest.mark.parametrize("budget", [LONG_OPEN, LONG_CLOSED])
def test_the_requests_own_deadline_comes_first(budget: Budget) -> None:
    async def body() -> None:
        hanging = Asked(for_ever)
        async with runtime({"v": (hanging, budget)}) as r:
            with pytest.raises(DeadlineExceeded):
                await r.complete(GenerateRequest(prompt="hi", timeout=SHORT))
            assert figures(r, "validators.v", "check_input").timeouts == 0
        assert hanging.cancelled == 1

    run(body)


def test_something_cancelled_inside_the_plugin_is_its_failure() -> None:
    async def inner() -> None:
        task = asyncio.create_task(for_ever())
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    async def body() -> None:
        async with runtime({"v": (Asked(inner), LONG_CLOSED)}) as r:
            with pytest.raises(InternalError):
                await r.complete(ASK)
        async with runtime({"v": (Asked(inner), LONG_OPEN)}) as r:
            assert (await r.complete(ASK)).text == "answer"

    run(body)


@pytest.mark.parametrize("budget", [OPEN, CLOSED])
def test_an_answer_that_comes_late_is_used(budget: Budget) -> None:
    """A plugin that swallows the cancellation cannot be cut; what it says then, counts."""

    async def stubborn() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            return

    async def body() -> None:
        async with runtime({"v": (Asked(stubborn), budget)}) as r:
            assert (await r.complete(ASK)).text == "answer"
            with pytest.raises(RequestRejected):
                await r.complete(GenerateRequest(prompt="forbidden"))
            seen = figures(r, "validators.v", "check_input")
            assert (seen.timeouts, seen.failures) == (2, 0)
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelling()

    run(body)


# --- the quota -----------------------------------------------------------------------------------


def test_a_reserve_that_hangs_leaks_nothing() -> None:
    async def body() -> None:
        quota = Places(reserve=for_ever)
        backend = ScriptedBackend(say("a"))
        async with runtime(quota=(quota, CLOSED), backend=backend) as r:
            with pytest.raises(HookTimeout, match=r"quota \(reserve\)"):
                await r.complete(ASK)
            assert quota.free == 1
            assert not backend.starts
            quota.what.clear()
            await r.complete(ASK)
            assert quota.free == 1
        quota = Places(reserve=for_ever)
        async with runtime(quota=(quota, OPEN)) as r:
            assert (await r.complete(ASK)).text == "answer"
            assert quota.free == 1
            assert [s.call for s in r.hook_stats()] == ["reserve"]  # There is nothing to settle.

    run(body)


@pytest.mark.parametrize("budget", [OPEN, CLOSED])
def test_a_reservation_that_comes_late_is_ended_too(budget: Budget) -> None:
    async def stubborn() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            return

    async def body() -> None:
        quota = Places(reserve=stubborn)
        async with runtime(quota=(quota, budget)) as r:
            assert (await r.complete(ASK)).text == "answer"
            assert quota.free == 1
            # Late for the request too: it ends before the model is asked, and gives it back.
            with pytest.raises(DeadlineExceeded):
                await r.complete(GenerateRequest(prompt="hi", timeout=SHORT / 5))
            assert quota.free == 1

    run(body)


def test_a_settle_that_hangs() -> None:
    async def body() -> None:
        quota = Places(settle=for_ever)
        async with runtime(quota=(quota, CLOSED)) as r:
            with pytest.raises(HookTimeout, match=r"quota \(settle\)"):
                await r.complete(ASK)
            assert quota.free == 1
        quota = Places(settle=for_ever)
        async with runtime(quota=(quota, OPEN)) as r:
            assert (await r.complete(ASK)).text == "answer"
            assert quota.free == 1
            assert figures(r, "quota", "settle").timeouts == 1

    run(body)


@pytest.mark.parametrize(
    ("what", "budget"),
    [(for_ever, OPEN), (for_ever, CLOSED), (broken, LONG_OPEN), (broken, LONG_CLOSED)],
)
def test_a_release_that_fails_hides_no_error(
    what: Callable[[], Awaitable[None]], budget: Budget
) -> None:
    async def body() -> None:
        quota = Places(release=what)
        backend = ScriptedBackend([BackendFailed("The true reason.")])
        async with runtime(quota=(quota, budget), backend=backend) as r:
            with pytest.raises(BackendFailed, match="The true reason"):
                await r.complete(ASK)
            seen = figures(r, "quota", "release")
            assert seen.timeouts + seen.failures == 1
        assert quota.free == 1

    run(body)


def test_a_dropped_request_is_released_within_the_budget() -> None:
    async def body() -> None:
        quota = Places(release=for_ever)
        backend = ScriptedBackend([*say("a")[:2], Hold()])
        async with runtime(quota=(quota, CLOSED), backend=backend) as r:
            async with aclosing(r.generate(ASK)) as events:
                await anext(events)
            assert quota.free == 1
            assert figures(r, "quota", "release").timeouts == 1

    run(body)


# --- checks of the output ------------------------------------------------------------------------


class Failing(FakeValidator):
    """Its check fails at "!", holding one character back; `change` is what it does to text."""

    def __init__(self, change: Callable[[str], str] = str, at: str = "!") -> None:
        super().__init__("forbidden")
        self.change = change
        self.at = at

    def check_output(self, request: GenerateRequest) -> FailingCheck:  # type: ignore[override]
        if self.at == "make":
            raise ConnectionError("no check")
        return FailingCheck(self)


class FailingCheck:
    def __init__(self, owner: Failing) -> None:
        self.owner = owner
        self.held = ""

    def push(self, text: str) -> str:
        if self.owner.at in text:
            raise ConnectionError("no verdict")
        text = self.held + self.owner.change(text)
        self.held = text[-1:]
        return text[:-1]

    def finish(self) -> str:
        if self.owner.at == "end":
            raise ConnectionError("no end")
        return self.held


@pytest.mark.parametrize("at", ["make", "!", "end"])
def test_a_check_that_fails(at: str) -> None:
    backend_says = say("one ", "two", "! three", " four")

    async def body() -> None:
        async with runtime(
            {"v": (Failing(at=at), LONG_CLOSED)}, backend=ScriptedBackend(backend_says)
        ) as r:
            with pytest.raises(InternalError):
                await r.complete(ASK)
        async with runtime(
            {"v": (Failing(at=at), LONG_OPEN)}, backend=ScriptedBackend(backend_says)
        ) as r:
            # Nothing is lost and nothing comes twice, whatever the check held back.
            assert (await r.complete(ASK)).text == "one two! three four"
            assert figures(r, "validators.v", "check_output").failures == 1

    run(body)


def test_a_check_that_fails_does_not_excuse_the_text_from_others() -> None:
    async def body() -> None:
        validators = {"v": (Failing(), LONG_OPEN), "w": (FakeValidator("three"), LONG_CLOSED)}
        backend = ScriptedBackend(say("one ", "two", "! th", "ree"))
        async with runtime(validators, backend=backend) as r:
            with pytest.raises(RequestRejected):
                await r.complete(ASK)

    run(body)


def test_a_check_that_has_changed_the_text_cannot_be_passed_over() -> None:
    async def body() -> None:
        backend = ScriptedBackend(say("one ", "two", "!"))
        async with runtime({"v": (Failing(str.upper), LONG_OPEN)}, backend=backend) as r:
            with pytest.raises(InternalError, match="has changed the text"):
                await r.complete(ASK)
        backend = ScriptedBackend(say("one ", "two"))
        async with runtime({"v": (Failing(str.upper), LONG_OPEN)}, backend=backend) as r:
            assert (await r.complete(ASK)).text == "ONE TWO"

    run(body)


def test_a_check_that_returns_no_text() -> None:
    class Forgetful(FailingCheck):
        def push(self, text: str) -> str:
            return None  # type: ignore[return-value]

    class Validator(Failing):
        def check_output(self, request: GenerateRequest) -> FailingCheck:  # type: ignore[override]
            return Forgetful(self)

    async def body() -> None:
        async with runtime({"v": (Validator(), LONG_CLOSED)}) as r:
            with pytest.raises(InternalError):
                await r.complete(ASK)
        async with runtime({"v": (Validator(), LONG_OPEN)}) as r:
            assert (await r.complete(ASK)).text == "answer"

    run(body)


def test_checks_are_measured_and_their_late_answers_used() -> None:
    """They are synchronous: a budget of nothing is always exceeded, and cuts nothing."""

    async def body() -> None:
        guard = GuardedValidator(FakeValidator("forbidden"), Hook("v", Budget(timeout=1e-12)))
        check = guard.check_output(ASK)
        assert check is not None
        assert check.push("some text") + check.finish() == "some text"
        (seen,) = guard.hook.stats()
        assert (seen.call, seen.timeouts, seen.failures) == ("check_output", 3, 0)
        assert sum(seen.seconds.counts) == 3

    run(body)


# --- caches --------------------------------------------------------------------------------------


class SickCache(FakeCache):
    async def get(self, key: bytes) -> bytes | None:
        await super().get(key)
        await for_ever()
        raise AssertionError

    async def put(self, key: bytes, value: bytes) -> None:
        raise ConnectionError("nobody there")


def test_a_cache_that_fails() -> None:
    async def body() -> None:
        closed = guarded_cache(SickCache(), CLOSED)
        with pytest.raises(HookTimeout):
            await closed.get(b"k")
        with pytest.raises(InternalError):
            await closed.put(b"k", b"v")
        opened = guarded_cache(SickCache(), OPEN)
        assert await opened.get(b"k") is None
        await opened.put(b"k", b"v")
        assert [(s.call, s.timeouts, s.failures) for s in opened.hook.stats()] == [
            ("get", 1, 0),
            ("put", 0, 1),
        ]
        good = FakeCache()
        cache = guarded_cache(good)
        await cache.put(b"k", b"v")
        assert await cache.get(b"k") == b"v"
        await cache.aclose()
        assert good.closes == 1
        assert cache.hook.budget.on_failure == "open"

    run(body)


# --- all of them ---------------------------------------------------------------------------------


def test_plugins_at_hand_have_the_default_budget() -> None:
    async def body() -> None:
        validators, quota = [FakeValidator("x"), FakeValidator("y")], FakeQuota()
        source = ModelSource(backend="scripted", make=lambda: ScriptedBackend(say("a")))
        async with Runtime({"m": source}, default="m", validators=validators, quota=quota) as r:
            assert r.hook_stats() == ()
            await r.complete(ASK)
            assert [(s.hook, s.call) for s in r.hook_stats()] == [
                ("validators.0", "check_input"),
                ("validators.0", "check_output"),
                ("validators.1", "check_input"),
                ("validators.1", "check_output"),
                ("quota", "reserve"),
                ("quota", "settle"),
            ]
            assert all(s.timeouts == s.failures == 0 for s in r.hook_stats())
        assert [v.closes for v in validators] == [1, 1]
        assert quota.closes == 1
        (reservation,) = quota.reservations
        assert reservation.settled is not None

    run(body)


def test_histograms_are_whole() -> None:
    hook = Hook("h", Budget())
    for _ in range(3):
        assert hook.at_once("c", None, len, "abc") == 3
    (stats,) = hook.stats()
    assert len(stats.seconds.counts) == len(stats.seconds.bounds) + 1
    assert sum(stats.seconds.counts) == 3
    assert list(stats.seconds.bounds) == sorted(set(stats.seconds.bounds))
    assert stats.seconds.total > 0


def test_the_last_delta_stays_one_text() -> None:
    """What a failed check held back comes before the text that it failed at, in one piece."""

    async def body() -> None:
        backend = ScriptedBackend(say("one", "!"))
        async with (
            runtime({"v": (Failing(), LONG_OPEN)}, backend=backend) as r,
            aclosing(r.generate(ASK)) as events,
        ):
            texts = [event.text async for event in events if isinstance(event, Delta)]
        assert texts == ["on", "e!"]

    run(body)


def test_budgets_refuse_senseless_values() -> None:
    for bad in ({"timeout": 0}, {"timeout": -1}, {"on_failure": "ajar"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, Budget)


class Wrong:
    """What a plugin's author may get wrong: no coroutine, nothing returned, another type."""

    def __init__(self, what: object) -> None:
        self.what = what

    def _do(self, *_: object) -> Any:
        if isinstance(self.what, Exception):
            raise self.what

        async def answer() -> object:
            return self.what

        return answer()

    reserve = get = put = settle = release = _do

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("what", [None, 7, RuntimeError("before it can be awaited")])
def test_a_quota_that_returns_nonsense_is_a_failure_like_others(what: object) -> None:
    async def main() -> None:
        request = GenerateRequest(prompt="x")
        wrong: Any = Wrong(what)
        for usage in (Usage(prompt_tokens=1), None):
            guard = GuardedQuota(wrong, Hook("quota", Budget(on_failure="open"), "wrong"))
            reservation = await guard.reserve(request)
            await (reservation.settle(usage) if usage else reservation.release())
        closed = GuardedQuota(wrong, Hook("quota", Budget(on_failure="closed"), "wrong"))
        with pytest.raises(InternalError):
            await closed.reserve(request)

    asyncio.run(main())


def test_a_reservation_that_raises_at_once_is_a_failure_like_others() -> None:
    async def main() -> None:
        given: Any = Wrong(None)
        given.what = given  # Its own reservation.
        for mode in ("open", "closed"):
            given.what = given
            budget = Budget(on_failure=mode)
            guard = GuardedQuota(given, Hook("quota", budget, "wrong"))
            reservation = await guard.reserve(GenerateRequest(prompt="x"))
            given.what = RuntimeError("before it can be awaited")
            await reservation.release()  # Never raises.
            if mode == "open":
                await reservation.settle(Usage())
            else:
                with pytest.raises(InternalError):
                    await reservation.settle(Usage())

    asyncio.run(main())


@pytest.mark.parametrize("what", [7, memoryview(b"x"), RuntimeError("at once")])
def test_a_cache_that_returns_nonsense_has_nothing(what: object) -> None:
    async def main() -> None:
        wrong: Any = Wrong(what)
        cache = guarded_cache(wrong)
        assert await cache.get(b"key") is None
        await cache.put(b"key", b"value")

    asyncio.run(main())
