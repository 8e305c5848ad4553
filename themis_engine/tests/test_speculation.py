"""Speculation: what is guessed, how far, and that the output never shows it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.errors import ModelLoadFailed
from themis_core.messages import (
    BackendStats,
    Completion,
    GenerateRequest,
    SamplingParams,
)
from themis_engine import Batch, EngineBackend, EngineOptions, Logits
from themis_engine.crossing import EventStream
from themis_engine.sequence import Group, Sequence
from themis_engine.speculation import PromptLookup, Speculation
from themis_engine.step_cost import StepCost
from themis_testkit.conformance.base import complete
from themis_testkit.fakes.toy_runner import VOCAB, ToyRunner, ToyTokenizer


def sequence(tokens: list[int], *, limit: int = 100, prompt: int = 1) -> Sequence:
    request = GenerateRequest(prompt=tuple(tokens), sampling=SamplingParams(temperature=0.0))
    group = Group(request=request, stream=EventStream(), submitted=0.0)
    return Sequence(
        group=group,
        index=0,
        tokens=list(tokens),
        prompt_length=prompt,
        limit=limit,
        seed=0,
        arrival=0,
    )


def guess(s: Sequence, count: int) -> list[int]:
    PromptLookup().propose({s: count})
    return s.drafts


def test_lookup_continues_what_stood_there_before() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4]
    assert guess(sequence(text), 3) == [5, 6, 7]


def test_lookup_prefers_the_longer_match_and_then_the_later_one() -> None:
    assert guess(sequence([1, 2, 3, 4, 9, 3, 4, 8, 1, 2, 3, 4]), 1) == [9]
    assert guess(sequence([5, 3, 4, 9, 6, 3, 4, 8, 7, 3, 4]), 1) == [8]


def test_lookup_repeats_a_short_period() -> None:
    assert guess(sequence([1, 2, 1, 2, 1, 2]), 5) == [1, 2, 1, 2, 1]


def test_lookup_guesses_nothing_without_a_match() -> None:
    assert guess(sequence([1, 2, 3, 4]), 4) == []
    assert guess(sequence([1]), 4) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 8))
def test_lookup_learns_as_the_text_grows(tokens: list[int], count: int) -> None:
    """One that has watched the text grow guesses what one guesses that sees it whole."""
    grown = sequence(tokens[:1])
    lookup = PromptLookup()
    for token in tokens[1:]:
        lookup.propose({grown: count})
        grown.tokens.append(token)
    lookup.propose({grown: count})
    assert grown.drafts == guess(sequence(tokens), count)


class Fixed:
    """Guesses that cost so many seconds."""

    def __init__(self, cost: float = 0.0) -> None:
        self.cost = cost

    def propose(self, wanted: Any) -> None:
        for s, count in wanted.items():
            s.drafts = [1] * count

    def forget(self, sequence: Sequence) -> None:
        pass

    def close(self) -> None:
        pass


def trained(fixed: float, slope: float, *, cost: float = 0.0, limit: int = 8) -> Speculation:
    speculation = Speculation(Fixed(cost), limit)
    for positions in [1, 2, 4, 8] * 10:
        speculation.observe(positions, fixed + slope * positions)
    return speculation


def test_a_step_that_hardly_grows_is_worth_long_guesses() -> None:
    s = sequence([1])
    s.acceptance = 0.8
    assert trained(10.0, 0.01).depths([s]) == {s: 8}


def test_a_step_whose_cost_is_all_in_its_positions_is_worth_none() -> None:
    s = sequence([1])
    s.acceptance = 0.8
    assert trained(0.01, 1.0).depths([s]) == {s: 0}


def test_a_dear_draft_model_is_worth_none() -> None:
    s = sequence([1])
    s.acceptance = 0.8
    assert trained(10.0, 0.01, cost=0.1).depths([s])[s] > 0
    assert trained(10.0, 0.01, cost=20.0).depths([s]) == {s: 0}


def test_depth_follows_acceptance() -> None:
    good, bad = sequence([1]), sequence([1])
    good.acceptance, bad.acceptance = 0.95, 0.1
    depths = trained(10.0, 1.0).depths([good, bad])
    assert depths[good] > depths[bad]


def test_speculation_that_loses_switches_itself_off_and_tries_again_later() -> None:
    speculation = trained(3.0, 1.0)
    s = sequence([1])
    for _ in range(20):
        speculation.verified(s, 4, 0)
    assert speculation.depths([s]) == {s: 0}
    for _ in range(500):
        speculation.propose([s])
        if s.drafts:
            break
    else:
        pytest.fail("it was never tried again")


def test_no_guess_goes_beyond_the_limit() -> None:
    s = sequence([1], limit=3)
    s.acceptance = 1.0
    assert trained(10.0, 0.001).depths([s]) == {s: 2}


def test_costs_are_learned() -> None:
    cost = StepCost()
    assert cost.of(1) is None
    for positions in [1, 3, 9] * 20:
        cost.observe(positions, 5 + 2 * positions)
    assert cost.slope == pytest.approx(2)
    assert cost.of(20) == pytest.approx(45)


# --- in the engine -------------------------------------------------------------------------------


class Markov(ToyRunner):
    """The next token depends on the last one only, so texts repeat themselves."""

    def __init__(self, seed: int = 0, blur: float = 0.0, **options: Any) -> None:
        super().__init__(context=256, kv=2048, **options)
        table = np.random.default_rng(1).normal(0, 2, (VOCAB, VOCAB))
        table += blur * np.random.default_rng(seed + 7).normal(0, 1, (VOCAB, VOCAB))
        table[:, 0] = -50.0
        self.table = table.astype(np.float32)

    def forward(self, batch: Batch) -> Logits:
        super().forward(batch)
        return self.table[batch.tokens[batch.logit_rows]].copy()


def answers(
    runner: ToyRunner, requests: list[GenerateRequest], **options: Any
) -> tuple[list[Completion], BackendStats]:
    draft = options.pop("draft", None)

    async def main() -> tuple[list[Completion], BackendStats]:
        backend = EngineBackend(
            lambda: runner, backend="toy", options=EngineOptions(**options), draft=draft
        )
        await backend.start()
        try:
            found = await asyncio.gather(*(complete(backend, request) for request in requests))
            return list(found), await backend.stats()
        finally:
            await backend.aclose()

    return asyncio.run(main())


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess three tokens each time: what it is worth depends on the speed of the machine."""

    def depths(self: Speculation, sequences: list[Sequence]) -> dict[Sequence, int]:
        return {s: max(0, min(3, s.limit - s.generated - 1)) for s in sequences}

    monkeypatch.setattr(Speculation, "depths", depths)


def requests(count: int, **sampling: Any) -> list[GenerateRequest]:
    return [
        GenerateRequest(
            prompt=(1 + i % 60, 2, 3),
            sampling=SamplingParams(**{"max_tokens": 60, "seed": i} | sampling),
            request_id=str(i),
        )
        for i in range(count)
    ]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.5}, {"top_k": 2}])
@pytest.mark.parametrize("how", ["lookup", "draft"])
def test_the_output_is_the_same_with_speculation(how: str, sampling: dict[str, Any]) -> None:
    wanted = requests(6, **sampling)
    plain, _ = answers(Markov(), wanted)
    draft = Markov(seed=1, blur=0.3)
    fast, stats = answers(Markov(), wanted, speculation=how, draft=lambda: draft)
    assert [c.choices for c in fast] == [c.choices for c in plain]
    assert stats.drafted_tokens > 0
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    assert draft.closed == (how == "draft")


@pytest.mark.usefixtures("always")
def test_sampled_output_has_the_right_distribution() -> None:
    """Chi-square of what follows a token, without seeds in common with the run without drafts."""
    wanted = requests(400, temperature=1.0, max_tokens=12)
    draft = Markov(seed=1, blur=0.3, slots=8)
    found, stats = answers(Markov(slots=8), wanted, speculation="draft", draft=lambda: draft)
    assert stats.accepted_tokens > 1000
    table = Markov().table
    weights = np.exp(table - table.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    pairs: Counter[tuple[int, int]] = Counter()
    for completion, request in zip(found, wanted, strict=True):
        assert isinstance(request.prompt, tuple)
        ids = [*request.prompt, *completion.choices[0].token_ids]
        pairs.update(itertools.pairwise(ids[2:]))
    chi, freedom = 0.0, 0
    for last in range(1, VOCAB):
        total = sum(pairs[last, token] for token in range(VOCAB))
        likely = [t for t in range(VOCAB) if weights[last, t] * total >= 5]
        if len(likely) < 2:
            continue
        rest = total * (1 - sum(weights[last, t] for t in likely))
        others = total - sum(pairs[last, t] for t in likely)
        chi += sum(
            (pairs[last, t] - weights[last, t] * total) ** 2 / (weights[last, t] * total)
            for t in likely
        )
        chi += (others - rest) ** 2 / rest
        freedom += len(likely)
    assert freedom > 50
    # Wilson and Hilferty's approximation of the 0.999 quantile.
    assert chi < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_a_proposer_that_breaks_is_switched_off_and_nobody_suffers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(batch: Batch) -> None:
        raise ZeroDivisionError("broken")

    wanted = requests(3, temperature=0.0)
    plain, _ = answers(Markov(), wanted)
    draft = Markov(before_forward=broken)
    with caplog.at_level(logging.ERROR):
        found, _ = answers(Markov(), wanted, speculation="draft", draft=lambda: draft)
    assert [c.choices for c in found] == [c.choices for c in plain]
    assert "switched off" in caplog.text
    assert draft.closed == 1


def test_a_draft_model_with_other_tokens_is_refused() -> None:
    class Other(ToyTokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            return b"?" if token_id == 5 else super().token_bytes(token_id)

    runner, draft = Markov(), Markov()
    draft.tokenizer = Other()
    with pytest.raises(ModelLoadFailed, match="Token 5 is"):
        answers(runner, [], speculation="draft", draft=lambda: draft)
    assert runner.closed == draft.closed == 1


def test_a_model_that_cannot_be_cut_refuses_speculation() -> None:
    runner = Markov(truncates=False)
    with pytest.raises(ModelLoadFailed, match="truncated"):
        answers(runner, [], speculation="lookup")
    assert runner.closed == 1


def test_a_draft_model_with_little_room_still_changes_nothing() -> None:
    wanted = requests(8, temperature=0.0)
    plain, _ = answers(Markov(slots=8), wanted)
    draft = ToyRunner(context=256, kv=80, slots=2)
    found, _ = answers(Markov(slots=8), wanted, speculation="draft", draft=lambda: draft)
    assert [c.choices for c in found] == [c.choices for c in plain]
