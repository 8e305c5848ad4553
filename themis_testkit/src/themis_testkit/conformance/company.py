"""Many requests at once: none may notice the others."""

from __future__ import annotations

import asyncio
import math

import msgspec

from themis_core.contracts import Backend
from themis_core.messages import Choice, GenerateRequest
from themis_testkit.conformance.base import (
    ConformanceBase,
    begin,
    complete,
    fields,
    idle,
    need,
    on_backend,
)

_MANY = 16


class CompanyChecks(ConformanceBase):
    """A backend is "used by any number of concurrent requests"."""

    @on_backend
    async def test_many_greedy_requests_equal_each_alone(self, backend: Backend) -> None:
        """Company changes no greedy answer, whatever is batched with what.

        Unless `batch_invariant` is declared, two tokens whose log-probabilities differ by less than
        `tie` may take each other's place.
        """
        need(backend, "sampling.temperature", "deterministic")
        requests = [self.request(backend, prompt) for prompt in self._prompts()]
        alone = [await _answer(backend, request) for request in requests]
        together = await asyncio.gather(*(_answer(backend, request) for request in requests))
        for request, one, other in zip(requests, alone, together, strict=True):
            assert other == one or await self._tied(backend, request, one, other)

    @on_backend
    async def test_sampled_requests_equal_each_alone(self, backend: Backend) -> None:
        """The same seed gives the same answer, alone and in company."""
        need(backend, "sampling.temperature", "sampling.seed", "batch_invariant")
        requests = [
            self.request(backend, prompt, temperature=1.0, seed=seed)
            for seed, prompt in enumerate(self._prompts())
        ]
        alone = [await _answer(backend, request) for request in requests]
        together = await asyncio.gather(*(_answer(backend, request) for request in requests))
        assert together == alone

    @on_backend
    async def test_lengths_and_stops_of_neighbours_do_not_mix(self, backend: Backend) -> None:
        """Requests that join and leave at different times keep their own limits."""
        limits = [1 + 3 * i for i in range(_MANY)]
        requests = [self.long_request(backend, max_tokens=limit) for limit in limits]
        answers = await asyncio.gather(*(_answer(backend, request) for request in requests))
        assert [len(answer.token_ids) for answer in answers] == limits
        if {"sampling.temperature", "sampling.ignore_eos"} <= fields(backend):
            longest = answers[-1].token_ids
            assert all(answer.token_ids == longest[: len(answer.token_ids)] for answer in answers)

    @on_backend
    async def test_cancelled_neighbours_change_nothing(self, backend: Backend) -> None:
        """Closing one generation leaves the others as they were."""
        need(backend, "sampling.temperature", "deterministic")
        request = self.long_request(backend, max_tokens=48)
        alone = await _answer(backend, request)
        doomed = [await begin(backend, self.long_request(backend)) for _ in range(3)]
        running = asyncio.create_task(_answer(backend, request))
        for events in doomed:
            await events.aclose()
            await asyncio.sleep(0)
        answer = await running
        assert answer == alone or await self._tied(backend, request, alone, answer)
        await idle(backend)

    async def _tied(
        self, backend: Backend, request: GenerateRequest, alone: Choice, other: Choice
    ) -> bool:
        """True if two answers differ from where floats decided between two tokens as good."""
        if backend.info.capabilities.batch_invariant or "sampling.logprobs" not in fields(backend):
            return False
        pairs = enumerate(zip(alone.token_ids, other.token_ids, strict=False))
        place = next((at for at, (one, another) in pairs if one != another), None)
        if place is None:
            return False
        sampling = msgspec.structs.replace(request.sampling, logprobs=2)
        shown = await _answer(backend, msgspec.structs.replace(request, sampling=sampling))
        top = {token: value for token, _, value in shown.logprobs[place].top}
        both = [top.get(choice.token_ids[place], -math.inf) for choice in (alone, other)]
        return shown.token_ids == alone.token_ids and min(both) >= max(top.values()) - self.tie

    def _prompts(self) -> list[str]:
        """Prompts of different lengths, some that begin alike."""
        return [f"{self.prompt} {'and again ' * (i % 5)}{i}" for i in range(_MANY)]


async def _answer(backend: Backend, request: GenerateRequest) -> Choice:
    return (await complete(backend, request)).choices[0]
