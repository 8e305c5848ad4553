"""How tokens are chosen. Each check needs the field that it is about, declared."""

from __future__ import annotations

import math
from typing import Any

import pytest

from themis_core.contracts import Backend
from themis_testkit.conformance.base import ConformanceBase, complete, fields, need, on_backend

_EPSILON = 1e-3
_HOT = 3.0  # So that a model that is sure of itself draws differently too.


class SamplingChecks(ConformanceBase):
    """`themis_core.messages.SamplingParams`, field by field."""

    @on_backend
    async def test_same_seed_same_answer(self, backend: Backend) -> None:
        """`seed` "makes sampled output repeatable"."""
        need(backend, "sampling.seed", "sampling.temperature", "deterministic")
        for seed in (0, 1, 2**64 - 1):
            first = await self.answer(backend, temperature=_HOT, seed=seed)
            assert await self.answer(backend, temperature=_HOT, seed=seed) == first

    @on_backend
    async def test_different_seeds_differ(self, backend: Backend) -> None:
        """Different seeds, and requests "without one", draw differently."""
        need(backend, "sampling.seed", "sampling.temperature")
        if self.has_one_answer:
            pytest.skip("has_one_answer: the model has only one possible answer")
        for seeds in (range(8), [None] * 8):
            answers = [await self.answer(backend, temperature=_HOT, seed=seed) for seed in seeds]
            assert len({answer.token_ids for answer in answers}) > 1

    @pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
    @on_backend
    async def test_narrowest_sampling_is_greedy(
        self, backend: Backend, only: dict[str, Any]
    ) -> None:
        """`top_k` 1, a tiny `top_p` and `min_p` 1 each leave only the most probable token."""
        name = next(iter(only))
        need(backend, f"sampling.{name}", "sampling.temperature", "deterministic")
        greedy = await self.answer(backend)
        seed: dict[str, Any] = {"seed": 7} if "sampling.seed" in fields(backend) else {}
        assert await self.answer(backend, temperature=1.0, **seed, **only) == greedy

    @on_backend
    async def test_logprobs(self, backend: Backend) -> None:
        """`TokenLogprob`, one for each token id: alternatives "best first", a distribution."""
        need(backend, "sampling.logprobs", "sampling.temperature")
        for temperature in (0.0, 1.0):
            choice = await self.answer(backend, temperature=temperature, logprobs=5)
            assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
            for entry in choice.logprobs:
                values = [value for _, _, value in entry.top]
                assert len(values) == 5
                assert values == sorted(values, reverse=True)
                assert len({token for token, _, _ in entry.top}) == 5
                assert entry.logprob <= values[0] + _EPSILON
                assert sum(map(math.exp, values)) <= 1 + _EPSILON
                if temperature == 0.0:
                    assert entry.logprob == pytest.approx(values[0], abs=_EPSILON)
                for token, piece, value in entry.top:
                    if token == entry.token_id:
                        assert piece == entry.token
                        assert value == pytest.approx(entry.logprob, abs=_EPSILON)

    @on_backend
    async def test_number_of_logprobs(self, backend: Backend) -> None:
        """`logprobs`: "0: only the chosen one; None: none at all"; they change no token."""
        need(backend, "sampling.logprobs", "sampling.temperature", "deterministic")
        none = await self.answer(backend)
        zero = await self.answer(backend, logprobs=0)
        assert none.logprobs == ()
        assert [entry.top for entry in zero.logprobs] == [()] * len(zero.token_ids)
        assert zero.token_ids == none.token_ids

    @on_backend
    async def test_logprobs_are_of_the_unmodified_distribution(self, backend: Backend) -> None:
        """`TokenLogprob`: "under the model's unmodified distribution": a bias changes none."""
        need(backend, "sampling.logprobs", "sampling.logit_bias", "sampling.temperature")
        plain = (await self.answer(backend, max_tokens=1, logprobs=5)).logprobs[0]
        biased = {plain.token_id: -1000.0}
        other = await self.answer(backend, max_tokens=1, logprobs=5, logit_bias=biased)
        assert [token for token, _, _ in other.logprobs[0].top] == [t for t, _, _ in plain.top]
        assert other.logprobs[0].logprob == pytest.approx(plain.top[1][2], abs=_EPSILON)

    @on_backend
    async def test_logit_bias_bans(self, backend: Backend) -> None:
        """A large negative `logit_bias` makes a token impossible."""
        need(backend, "sampling.logit_bias", "sampling.temperature")
        banned = dict.fromkeys((await self.answer(backend)).token_ids[:3], -1000.0)
        choice = await self.answer(backend, logit_bias=banned)
        assert not set(choice.token_ids) & set(banned)

    @on_backend
    async def test_logit_bias_forces(self, backend: Backend) -> None:
        """A `logit_bias` of +100 makes a token certain, under sampling as well."""
        need(backend, "sampling.logit_bias", "tokenize")
        usual = (await self.answer(backend)).token_ids
        candidates = await backend.tokenize(self.unicode_prompt)
        token = next((t for t in candidates if t not in usual), candidates[-1])
        heat: dict[str, Any] = (
            {"temperature": 1.0} if "sampling.temperature" in fields(backend) else {}
        )
        choice = await self.answer(backend, logit_bias={token: 100.0}, **heat)
        assert set(choice.token_ids) == {token}
        assert len(choice.token_ids) == self.generation_tokens

    @pytest.mark.parametrize(
        "penalty",
        [{"repetition_penalty": 3.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}],
        ids=str,
    )
    @on_backend
    async def test_penalties_change_repetitive_answers(
        self, backend: Backend, penalty: dict[str, Any]
    ) -> None:
        """A penalty changes at least one of several answers that repeat a token."""
        name = next(iter(penalty))
        need(backend, f"sampling.{name}", "sampling.temperature", "sampling.seed")
        changed = repeats = False
        for seed in range(6):
            drawn = {"temperature": 1.5, "seed": seed, "max_tokens": 48}
            plain = (await complete(backend, self.long_request(backend, **drawn))).choices[0]
            request = self.long_request(backend, **drawn, **penalty)
            other = (await complete(backend, request)).choices[0]
            repeats |= len(set(plain.token_ids)) < len(plain.token_ids)
            changed |= other.token_ids != plain.token_ids
        if not repeats:
            pytest.skip("the model repeats no token")
        assert changed
