"""Prefixes: what is not computed again changes nothing, is counted, and stays with its tenant."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.messages import GenerateRequest, Started
from themis_testkit.conformance.base import (
    ConformanceBase,
    collect,
    complete,
    completion,
    need,
    on_backend,
)

_COMMON = "Once upon a time there was a small fox who lived at the edge of a wood, and "


class ReuseChecks(ConformanceBase):
    """`Usage.cached_tokens`: "of the `prompt_tokens` were not computed again"."""

    @on_backend
    async def test_a_repeated_prompt_gives_the_same_answer(self, backend: Backend) -> None:
        """Whatever is kept between requests must not be seen in the answer."""
        need(backend, "sampling.temperature", "deterministic")
        request = self.request(backend, _COMMON)
        answers = [await complete(backend, request) for _ in range(3)]
        assert len({answer.choices[0].token_ids for answer in answers}) == 1
        for answer in answers:
            assert 0 <= answer.usage.cached_tokens < answer.usage.prompt_tokens
        if self.caches:
            assert answers[0].usage.cached_tokens == 0
            assert answers[1].usage.cached_tokens >= answers[1].usage.prompt_tokens // 2

    @on_backend
    async def test_cached_tokens_are_told_alike_everywhere(self, backend: Backend) -> None:
        """`Started`, `Usage` and `BackendStats` count the same."""
        total = 0
        for _ in range(2):
            events = await collect(backend, self.request(backend, _COMMON))
            started = next(event for event in events if isinstance(event, Started))
            usage = completion(self.request(backend), events).usage
            assert started.cached_tokens == usage.cached_tokens
            total += usage.cached_tokens
        assert (await backend.stats()).cached_tokens == total

    @on_backend
    async def test_prompts_that_arrive_together_share_their_beginning(
        self, backend: Backend
    ) -> None:
        """Sequences that run at the same moment share too, and each gives what it gives alone."""
        need(backend, "sampling.temperature", "deterministic")
        requests = [self.request(backend, f"{_COMMON}{i} and more") for i in range(6)]
        alone = []
        for request in requests:
            alone.append((await complete(backend, _salted(backend, request, "alone"))).choices)
        together = await asyncio.gather(*(complete(backend, request) for request in requests))
        assert [answer.choices for answer in together] == alone
        if self.caches:
            reused = [answer.usage.cached_tokens > 0 for answer in together]
            assert sum(reused) >= len(requests) - 1

    @on_backend
    async def test_tenants_share_nothing(self, backend: Backend) -> None:
        """`tenant` and `cache_salt` separate prefix caches."""
        need(backend, "cache_salt")
        if not self.caches:
            pytest.skip("caches: the backend keeps no prefixes")
        changes: list[dict[str, Any]] = [
            {},
            {"tenant": "a"},
            {"tenant": "b"},
            {"tenant": "a", "cache_salt": "x"},
            {"cache_salt": "x"},
        ]
        for change in changes:
            request = msgspec.structs.replace(self.request(backend, _COMMON), **change)
            cached = [(await complete(backend, request)).usage.cached_tokens for _ in range(2)]
            assert cached[0] == 0, f"{change} saw what another tenant computed"
            assert cached[1] > 0


def _salted(backend: Backend, request: GenerateRequest, salt: str) -> GenerateRequest:
    if "cache_salt" not in backend.info.capabilities.request_fields:
        return request
    return msgspec.structs.replace(request, cache_salt=salt)
