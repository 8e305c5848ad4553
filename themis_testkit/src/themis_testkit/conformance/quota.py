"""All checks of the `Quota` contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import given

from themis_core.contracts import Quota, Reservation
from themis_core.errors import QuotaExceeded
from themis_core.messages import GenerateRequest, SamplingParams, Usage
from themis_testkit.conformance.kit import (
    KitBase,
    assert_closes_clean,
    cancelled_after,
    declared,
    on,
)
from themis_testkit.fakes.clock import VirtualClock
from themis_testkit.strategies import quota_operations

QuotaFactory = Callable[[VirtualClock], Quota]

_PROMPT = "hi"


class QuotaConformance(KitBase):
    """Subclass it, give it the fixture `quota_factory`, and declare the limits that it is set to.

    A quota made by the factory gets its time from the `VirtualClock`, if it needs any.
    """

    concurrency: ClassVar[int | None] = None
    """How many reservations of one tenant can be open at once; None if that is not limited."""

    tokens: ClassVar[int | None] = None
    """How many tokens one tenant may use before it is refused; at least 64. None: no limit."""

    refill_seconds: ClassVar[float | None] = None
    """Seconds after which all `tokens` are there again; None if they never are."""

    separates_tenants: ClassVar[bool] = True
    """True if each tenant has its own account."""

    @pytest.fixture
    def quota_factory(self) -> QuotaFactory:
        """A function of a clock that gives a new quota, with nothing used, at each call."""
        raise NotImplementedError("a conformance suite needs the fixture quota_factory")

    def make(self, factory: QuotaFactory) -> Quota:
        """A quota and, in `self.clock`, its clock."""
        self.clock = VirtualClock()
        return factory(self.clock)

    def request(self, tenant: str = "a", max_tokens: int = 1) -> GenerateRequest:
        """A request with a short prompt."""
        sampling = SamplingParams(max_tokens=max_tokens)
        return GenerateRequest(prompt=_PROMPT, tenant=tenant, sampling=sampling)

    # --- one request -----------------------------------------------------------------------------

    @on("quota_factory")
    async def test_reserve_and_settle(self, quota: Quota) -> None:
        """`reserve` grants a fresh quota's first request; `settle` ends it."""
        reservation = await quota.reserve(self.request())
        await reservation.settle(_usage(1))

    @on("quota_factory")
    async def test_reserve_and_release(self, quota: Quota) -> None:
        """`release` ends it as well."""
        reservation = await quota.reserve(self.request())
        await reservation.release()

    @on("quota_factory")
    async def test_each_request_has_its_own_reservation(self, quota: Quota) -> None:
        """`Reservation`: "What one request has been granted"."""
        if (self.concurrency or 2) < 2:
            pytest.skip("only one reservation can be open")
        request = self.request()
        first, second = await quota.reserve(request), await quota.reserve(request)
        assert first is not second
        await first.release()
        await second.settle(_usage(1))

    @on("quota_factory")
    async def test_a_refusal_is_quota_exceeded(self, quota: Quota) -> None:
        """`reserve`: "Raises `QuotaExceeded`", with a text, and marked as worth another try."""
        if self.concurrency is None and self.tokens is None:
            pytest.skip("neither concurrency nor tokens is declared")
        for _ in range(self.concurrency or 0):
            await quota.reserve(self.request())
        if self.concurrency is None and self.tokens is not None:
            await self._use(quota, self.tokens)
        with pytest.raises(QuotaExceeded) as caught:
            await quota.reserve(self.request(max_tokens=8))
        assert str(caught.value)
        assert caught.value.retryable

    # --- concurrency -----------------------------------------------------------------------------

    @on("quota_factory")
    async def test_concurrency_is_exact(self, quota: Quota) -> None:
        """Not one more than declared, not one less; whoever ends makes room for one."""
        limit = declared(self.concurrency, "concurrency")
        for _ in range(3):
            held = await self._fill(quota, limit)
            for end in (held.pop().release(), held.pop().settle(_usage(1)) if held else None):
                if end is not None:
                    await end
                    held.append(await quota.reserve(self.request()))
                    await self._refused(quota)
            await self._empty(held)

    @on("quota_factory")
    async def test_concurrency_holds_when_all_come_at_once(self, quota: Quota) -> None:
        """Of many that reserve at the same time, exactly so many are granted."""
        limit = declared(self.concurrency, "concurrency")
        for _ in range(2):
            results = await asyncio.gather(
                *(quota.reserve(self.request()) for _ in range(4 * limit + 4)),
                return_exceptions=True,
            )
            granted = [r for r in results if not isinstance(r, BaseException)]
            errors = [r for r in results if isinstance(r, BaseException)]
            assert all(isinstance(error, QuotaExceeded) for error in errors), errors
            assert len(granted) == limit
            await asyncio.gather(*(reservation.release() for reservation in granted))

    def test_any_history(self, quota_factory: QuotaFactory) -> None:
        """In any order of reserving and ending: granted exactly while there is room."""
        limit = declared(self.concurrency, "concurrency")

        @self.settings(self.examples)
        @given(quota_operations())
        def play(operations: list[tuple[str, int]]) -> None:
            asyncio.run(history(operations))

        async def history(operations: list[tuple[str, int]]) -> None:
            quota = self.make(quota_factory)
            held: list[Reservation] = []
            try:
                for kind, number in operations:
                    if kind == "reserve":
                        if len(held) < limit:
                            held.append(await quota.reserve(self.request()))
                        else:
                            await self._refused(quota)
                    elif held:
                        one = held.pop(number % len(held))
                        await (one.release() if kind == "release" else one.settle(_usage(0)))
            finally:
                await self._empty(held)
                await quota.aclose()

        play()

    # --- tokens ----------------------------------------------------------------------------------

    @on("quota_factory")
    async def test_release_gives_everything_back(self, quota: Quota) -> None:
        """`release`: "Give everything back", however often, and no more than was taken."""
        tokens = declared(self.tokens, "tokens")
        for _ in range(12):
            reservation = await quota.reserve(self.request(max_tokens=tokens // 2))
            await reservation.release()
        await self._use(quota, tokens)
        await self._refused(quota, max_tokens=tokens // 2)

    @on("quota_factory")
    async def test_settle_replaces_the_estimate(self, quota: Quota) -> None:
        """`settle`: "Replace the estimate by what was really used": the rest is free again."""
        tokens = declared(self.tokens, "tokens")
        for _ in range(8):
            reservation = await quota.reserve(self.request(max_tokens=tokens // 2))
            await reservation.settle(_usage(1))

    @on("quota_factory")
    async def test_settle_counts_all_that_was_used(self, quota: Quota) -> None:
        """Who uses more than was reserved has used it: the account is empty."""
        await self._use(quota, declared(self.tokens, "tokens"))
        await self._refused(quota, max_tokens=8)

    @on("quota_factory")
    async def test_prompts_count_too(self, quota: Quota) -> None:
        """`Usage` has prompt and completion, and both were used."""
        tokens = declared(self.tokens, "tokens")
        reservation = await quota.reserve(self.request())
        await reservation.settle(Usage(prompt_tokens=tokens))
        await self._refused(quota, max_tokens=8)

    @on("quota_factory")
    async def test_using_nothing_gains_nothing(self, quota: Quota) -> None:
        """No account rises above its limit: usage of 0 and releases add nothing."""
        tokens = declared(self.tokens, "tokens")
        for i in range(6):
            reservation = await quota.reserve(self.request(max_tokens=tokens // 2))
            await (reservation.release() if i % 2 else reservation.settle(_usage(0)))
        await self._use(quota, tokens // 2)
        await self._refused(quota, max_tokens=tokens)

    @on("quota_factory")
    async def test_tokens_come_back_and_no_more(self, quota: Quota) -> None:
        """After `refill_seconds` the account is full, after ten times that not fuller."""
        tokens = declared(self.tokens, "tokens")
        seconds = declared(self.refill_seconds, "refill_seconds")
        await self._use(quota, tokens)
        await self._refused(quota, max_tokens=tokens // 2)
        for windows in (1, 10):
            self.clock.advance(seconds * windows)
            held = await quota.reserve(self.request(max_tokens=tokens // 2))
            await held.release()
            await self._use(quota, tokens)
            await self._refused(quota, max_tokens=tokens // 2)

    # --- cancelling and company ------------------------------------------------------------------

    @on("quota_factory")
    async def test_a_refusal_holds_nothing(self, quota: Quota) -> None:
        """Who was refused has nothing to give back; nor has it taken anything."""
        limit = declared(self.concurrency, "concurrency")
        held = await self._fill(quota, limit)
        for _ in range(20):
            await self._refused(quota)
        await self._empty(held)
        await self._empty(await self._fill(quota, limit))

    @on("quota_factory")
    async def test_a_cancelled_reserve_holds_nothing(self, quota: Quota) -> None:
        """`reserve`: "If cancelled, nothing is held."."""
        if self.concurrency is None and self.tokens is None:
            pytest.skip("neither concurrency nor tokens is declared")
        size = (self.tokens or 64) // 2
        for _ in range(3 + (self.concurrency or 0)):
            for turns in range(self.cancel_steps):
                granted = await cancelled_after(turns, quota.reserve(self.request(max_tokens=size)))
                if granted is not None:
                    await granted.release()
        reservation = await quota.reserve(self.request(max_tokens=size))
        await reservation.release()
        if self.concurrency is not None:
            await self._empty(await self._fill(quota, self.concurrency))

    @on("quota_factory")
    async def test_a_cancelled_end_is_an_end(self, quota: Quota) -> None:
        """`Reservation`: "cancelled, it has ended nonetheless": it is called no second time."""
        if self.concurrency is None and self.tokens is None:
            pytest.skip("neither concurrency nor tokens is declared")
        size = (self.tokens or 64) // 2
        for turns in range(1, self.cancel_steps):
            for _ in range(2 + (self.concurrency or 0)):
                reservation = await quota.reserve(self.request(max_tokens=size))
                await cancelled_after(turns, reservation.release())
                reservation = await quota.reserve(self.request(max_tokens=size))
                await cancelled_after(turns, reservation.settle(_usage(0)))

    @on("quota_factory")
    async def test_tenants_do_not_share(self, quota: Quota) -> None:
        """`GenerateRequest.tenant`: "separates accounts for quotas"."""
        if not self.separates_tenants:
            pytest.skip("separates_tenants is not declared")
        if self.tokens is not None:
            await self._use(quota, self.tokens)
            await self._refused(quota, max_tokens=self.tokens // 2)
        held = await self._fill(quota, self.concurrency) if self.tokens is None else []
        for tenant in ("b", "A", ""):
            reservation = await quota.reserve(self.request(tenant))
            await reservation.release()
        await self._empty(held)

    def test_closing(self, quota_factory: QuotaFactory) -> None:
        """`aclose`: "Release everything. Closing twice is fine.", with requests open too."""

        async def work(quota: Quota) -> None:
            await (await quota.reserve(self.request())).settle(_usage(1))
            await quota.reserve(self.request())

        async def main() -> None:
            async with asyncio.timeout(self.deadline):
                await assert_closes_clean(lambda: self.make(quota_factory), work)

        asyncio.run(main())

    # --- help ------------------------------------------------------------------------------------

    async def _fill(self, quota: Quota, limit: int | None) -> list[Reservation]:
        held = [await quota.reserve(self.request()) for _ in range(limit or 0)]
        if limit is not None:
            await self._refused(quota)
        return held

    async def _empty(self, held: list[Reservation]) -> None:
        while held:
            await held.pop().release()

    async def _refused(self, quota: Quota, max_tokens: int = 1) -> None:
        with pytest.raises(QuotaExceeded):
            await quota.reserve(self.request(max_tokens=max_tokens))

    async def _use(self, quota: Quota, tokens: int) -> None:
        """Use so many tokens with one request."""
        reservation = await quota.reserve(self.request())
        await reservation.settle(_usage(tokens))


def _usage(completion: int) -> Usage:
    return Usage(completion_tokens=completion)
