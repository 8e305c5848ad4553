"""The sampler against the formulas, computed plainly and separately here."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from themis_core.messages import GenerateRequest, SamplingParams
from themis_engine.crossing import EventStream
from themis_engine.sampler import InvalidLogits, Sampled, Sampler, choose, exponential
from themis_engine.sequence import Group, Sequence

END = 3
ROWS = hnp.arrays(
    np.float32,
    st.integers(5, 40),
    # Multiples of 1/64: what differs at all differs after rounding too.
    elements=st.integers(-1280, 1280).map(lambda n: n / 64),
)


def sequence(params: SamplingParams, tokens: tuple[int, ...] = (1,), prompt: int = 1) -> Sequence:
    request = GenerateRequest(prompt=tokens, sampling=params)
    return Sequence(
        group=Group(request=request, stream=EventStream(), submitted=0.0),
        index=0,
        prompt_length=prompt,
        tokens=list(tokens),
        limit=100,
        seed=params.seed or 0,
        arrival=0,
    )


def sample_one(row: np.ndarray[Any, Any], s: Sequence) -> Sampled:
    return Sampler(frozenset({END})).rows(row.copy()[None]).sample(0, s)


def softmax(row: np.ndarray[Any, Any], temperature: float = 1.0) -> list[float]:
    scaled = [float(x) / temperature for x in row]
    weights = [math.exp(x - max(scaled)) for x in scaled]
    return [w / sum(weights) for w in weights]


def filtered(row: np.ndarray[Any, Any], params: SamplingParams) -> set[int]:
    """Ids that may be drawn, straight from the definitions of top-k, top-p and min-p."""
    p = softmax(row, params.temperature)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        mass = sum(p[i] for i in order)
        kept, before = [], 0.0
        for i in order:
            if before / mass >= params.top_p:
                break
            kept.append(i)
            before += p[i]
        order = kept
    left = {i for i in order if p[i] >= params.min_p * p[order[0]]}
    if params.typical_p == 1.0:
        return left
    mass = sum(p[i] for i in left)
    entropy = -sum(p[i] / mass * math.log(p[i] / mass) for i in left if p[i])
    kept_ids: set[int] = set()
    for i in sorted(left, key=lambda i: (abs(-math.log(p[i] / mass) - entropy), i)):
        if sum(p[j] for j in kept_ids) / mass >= params.typical_p:
            break
        kept_ids.add(i)
    return kept_ids


@given(ROWS, st.floats(0.05, 0.99), st.integers(0, 2**64 - 1))
def test_typical_sampling_keeps_what_is_nearest_to_the_entropy(
    row: np.ndarray[Any, Any], mass: float, seed: int
) -> None:
    params = SamplingParams(typical_p=mass, seed=seed)
    token = sample_one(row, sequence(params)).token
    looser = msgspec.structs.replace(params, typical_p=min(0.999999, mass + 1e-6))
    # Where two distances differ by less than rounding, either may come first.
    p = softmax(row)
    entropy = -sum(x * math.log(x) for x in p if x)
    distances = sorted(abs(-math.log(x) - entropy) for x in p if x)
    unclear = any(0 < b - a < 1e-5 for a, b in itertools.pairwise(distances))
    assert unclear or token in filtered(row, params) | filtered(row, looser)


def test_typical_sampling_can_leave_the_most_probable_out() -> None:
    """Meister et al. 2022: a token far more certain than the rest is not typical."""
    row = np.log(np.array([0.4, *[0.6 / 30] * 30])).astype(np.float32)
    params = SamplingParams(typical_p=0.5)
    drawn = {choose(row, params, 3, position) for position in range(300)}
    assert 0 not in drawn
    assert len(drawn) > 10


@given(ROWS)
def test_greedy_takes_the_first_maximum(row: np.ndarray[Any, Any]) -> None:
    token = sample_one(row, sequence(SamplingParams(temperature=0))).token
    assert token == list(row).index(max(row))


@settings(max_examples=300)
@given(
    ROWS,
    st.floats(0.05, 5),
    st.integers(0, 50),
    st.floats(0.01, 1.0),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
)
def test_a_drawn_token_survives_all_filters(
    row: np.ndarray[Any, Any], t: float, k: int, p: float, m: float, seed: int
) -> None:
    params = SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=seed)
    token = sample_one(row, sequence(params)).token
    # Borders that only rounding decides are not judged: both sides are right.
    looser = msgspec.structs.replace(params, top_p=min(1.0, p + 1e-6), min_p=max(0.0, m - 1e-6))
    assert token in filtered(row, params) | filtered(row, looser)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    """Chi-square over many positions of one seed; the draws are fixed, so this cannot flicker."""
    row = np.array([3.0, 2.0, 1.0, 0.0, 0.0, -1.0, 2.5], dtype=np.float32)
    count = 4000
    params = SamplingParams(temperature=temperature)
    draws = [choose(row, params, 17, position) for position in range(count)]
    expected = [p * count for p in softmax(row, temperature)]
    chi = sum((draws.count(i) - e) ** 2 / e for i, e in enumerate(expected))
    assert chi < 22.46  # 6 degrees of freedom, p = 0.001


@given(st.integers(0, 2**64 - 1))
def test_the_noise_is_exponential(seed: int) -> None:
    numbers = exponential(seed, 5, np.arange(4000))
    assert (numbers > 0).all()
    # Seven standard deviations of the mean and of the share below the median.
    assert abs(numbers.mean() - 1) < 7 / math.sqrt(4000)
    assert abs((numbers < math.log(2)).mean() - 0.5) < 7 * 0.5 / math.sqrt(4000)


def test_the_noise_depends_on_seed_position_and_token() -> None:
    ids = np.arange(100)
    drawn = [exponential(seed, position, ids) for seed in range(20) for position in range(20)]
    assert len(np.unique(np.concatenate(drawn))) == 20 * 20 * 100
    assert exponential(3, 4, np.array([7]))[0] == exponential(3, 4, ids)[7]


def test_small_differences_of_logits_rarely_matter() -> None:
    """A flat distribution over 2,000 tokens, disturbed by a thousandth."""
    chance = np.random.default_rng(0)
    same = 0
    for position in range(500):
        row = chance.normal(0, 0.5, 2000).astype(np.float32)
        other = row + chance.normal(0, 1e-3, 2000).astype(np.float32)
        params = SamplingParams()
        same += choose(row, params, 1, position) == choose(other, params, 1, position)
    assert same >= 495


@given(ROWS, st.floats(0.1, 3), st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_repetition_penalty(row: np.ndarray[Any, Any], penalty: float, seen: list[int]) -> None:
    params = SamplingParams(temperature=0, repetition_penalty=penalty)
    want = [
        (float(np.float32(x) / np.float32(penalty)) if x > 0 else float(x * np.float32(penalty)))
        if i in seen
        else float(x)
        for i, x in enumerate(row)
    ]
    assert sample_one(row, sequence(params, tuple(seen))).token == want.index(max(want))


@given(ROWS, st.floats(-2, 2), st.floats(-2, 2), st.lists(st.integers(0, 4), max_size=8))
def test_frequency_and_presence_count_the_output_only(
    row: np.ndarray[Any, Any], frequency: float, presence: float, output: list[int]
) -> None:
    params = SamplingParams(temperature=0, frequency_penalty=frequency, presence_penalty=presence)
    token = sample_one(row, sequence(params, (2, 2, *output), prompt=2)).token
    want = [
        float(x) - frequency * output.count(i) - presence * (i in output) for i, x in enumerate(row)
    ]
    assert want[token] == pytest.approx(max(want), abs=1e-4)


@given(ROWS, st.integers(0, 4))
def test_logit_bias_bans_and_forces(row: np.ndarray[Any, Any], token: int) -> None:
    forced = SamplingParams(temperature=1, logit_bias={token: 1000.0})
    assert sample_one(row, sequence(forced)).token == token
    banned = SamplingParams(temperature=1, logit_bias={token: -1000.0})
    assert sample_one(row, sequence(banned)).token != token


def test_min_tokens_forbids_ends_until_enough() -> None:
    row = np.array([0, 1, 2, 9, 8], dtype=np.float32)
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(4,))
    assert sample_one(row, sequence(params, (1, 1), prompt=1)).token == 2
    assert sample_one(row, sequence(params, (1, 1, 1), prompt=1)).token == END


@given(ROWS, st.integers(0, 8))
def test_logprobs_are_of_the_unmodified_distribution(row: np.ndarray[Any, Any], count: int) -> None:
    params = SamplingParams(temperature=0, logprobs=count, logit_bias={1: 30.0})
    result = sample_one(row, sequence(params))
    p = softmax(row)
    assert result.logprob == pytest.approx(math.log(p[result.token]), abs=1e-5)
    best = sorted(map(math.log, p), reverse=True)[:count]
    assert [value for _, value in result.top] == pytest.approx(best, abs=1e-5)
    assert [value for _, value in result.top] == pytest.approx(
        [math.log(p[token]) for token, _ in result.top], abs=1e-5
    )


@given(ROWS, st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
def test_company_changes_nothing(row: np.ndarray[Any, Any], seeds: list[int]) -> None:
    sequences = [sequence(SamplingParams(temperature=0.9, top_p=0.9, seed=s)) for s in seeds]
    alone = [sample_one(row, s).token for s in sequences]
    together = Sampler(frozenset()).rows(np.tile(row, (len(seeds), 1)))
    assert [together.sample(i, s).token for i, s in enumerate(sequences)] == alone


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_unusable_logits_are_reported(value: float) -> None:
    rows = np.full((1, 5), value, dtype=np.float32)
    with pytest.raises(InvalidLogits):
        Sampler(frozenset()).rows(rows).sample(0, sequence(SamplingParams()))
