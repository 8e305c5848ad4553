"""The good plugins of this package pass their kits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest

import themis_tiny_model
from themis_core.contracts import Transport
from themis_engine import ModelRunner
from themis_testkit import (
    BannedWords,
    CacheConformance,
    FakeCache,
    FakeValidator,
    LossyTransport,
    LruCache,
    MemoryTransport,
    QuotaConformance,
    RunnerConformance,
    TokenQuota,
    TransportConformance,
    ValidatorConformance,
    VirtualClock,
)
from themis_testkit.conformance import (
    CacheFactory,
    QuotaFactory,
    RunnerFactory,
    TransportFactory,
    ValidatorFactory,
)
from themis_testkit.fakes.toy_runner import ToyRunner
from themis_testkit.reference.runner import ReferenceRunner

_names = itertools.count()


class TestLruCache(CacheConformance):
    @pytest.fixture
    def cache_factory(self) -> CacheFactory:
        return LruCache


class TestSmallLruCache(CacheConformance):
    """It loses most of what it is given."""

    @pytest.fixture
    def cache_factory(self) -> CacheFactory:
        return lambda: LruCache(40)


class TestFakeCache(CacheConformance):
    @pytest.fixture
    def cache_factory(self) -> CacheFactory:
        return FakeCache


class TestTokenQuota(QuotaConformance):
    tokens: ClassVar[int | None] = 600
    concurrency: ClassVar[int | None] = 4
    refill_seconds: ClassVar[float | None] = 60.0

    @pytest.fixture
    def quota_factory(self) -> QuotaFactory:
        return lambda clock: TokenQuota(600, 4, clock=clock)


class TestConcurrencyQuota(QuotaConformance):
    concurrency: ClassVar[int | None] = 1

    @pytest.fixture
    def quota_factory(self) -> QuotaFactory:
        return lambda clock: TokenQuota(concurrency=1, clock=clock)


class TestBannedWords(ValidatorConformance):
    rejected_prompts: ClassVar[tuple[str, ...]] = ("a Forbidden word", "xyzzy")
    rejected_answers: ClassVar[tuple[str, ...]] = ("forbidden", "xyzzy")
    never_sent: ClassVar[tuple[str, ...]] = ("forb", "xy")
    hold_back: ClassVar[int | None] = 8

    @pytest.fixture
    def validator_factory(self) -> ValidatorFactory:
        return lambda: BannedWords(["Forbidden", "xyzzy"])


class TestFakeValidator(ValidatorConformance):
    rejected_prompts: ClassVar[tuple[str, ...]] = ("a forbidden word",)
    rejected_answers: ClassVar[tuple[str, ...]] = ("forbidden",)
    hold_back: ClassVar[int | None] = 8

    @pytest.fixture
    def validator_factory(self) -> ValidatorFactory:
        return lambda: FakeValidator("forbidden")


class TestMemoryTransport(TransportConformance):
    @pytest.fixture
    def transport_factory(self) -> TransportFactory:
        return partial(_served, MemoryTransport)


class TestLossyTransportThatLosesNothing(TransportConformance):
    @pytest.fixture
    def transport_factory(self) -> TransportFactory:
        return partial(_served, LossyTransport)


class TestToyRunner(RunnerConformance):
    @pytest.fixture
    def runner_factory(self) -> RunnerFactory:
        return lambda: ToyRunner(embedding_size=4)


class TestRecurrentToyRunner(RunnerConformance):
    @pytest.fixture
    def runner_factory(self) -> RunnerFactory:
        return lambda: ToyRunner(truncates=False, shares_kv=True)


class TestReferenceRunner(RunnerConformance):
    @pytest.fixture
    def runner_factory(self) -> RunnerFactory:
        return lambda: _reference()


def _served(kind: Callable[[], Transport]) -> tuple[Transport, str]:
    return kind(), f"memory://{next(_names)}"


def _reference() -> ModelRunner:
    return ReferenceRunner(themis_tiny_model.path("hf"), parallel=4, kv_tokens=1024)


def test_the_clock_goes_forward_only() -> None:
    clock = VirtualClock()
    before = clock()
    clock.advance(1.5)
    assert clock() == before + 1.5
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)
