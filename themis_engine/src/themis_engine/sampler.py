"""Choosing the next token for every row of a batch.

The order of operations is fixed: repetition, frequency and presence penalties; logit bias;
`min_tokens`; the constraint; temperature; top-k; top-p; min-p; typical-p; then the Gumbel-max draw.
Its noise depends only on seed, position and token, so company in the batch never changes what a row
draws, and a rounding difference in the logits matters only if it reaches the distance between the
two best scores. A draft that is verified with the same noise is accepted exactly when it is what
would have been drawn without it.

Sources of the formulas: repetition penalty, Keskar et al. 2019 (CTRL), over prompt and output;
frequency and presence penalties, the OpenAI API reference, over the output; top-p, Holtzman et
al. 2020 (nucleus sampling); min-p, Nguyen et al. 2024; typical-p, Meister et al. 2022 (locally
typical sampling); Gumbel-max, Maddison et al. 2014.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from themis_core.messages import SamplingParams
from themis_engine.runner import Logits
from themis_engine.sequence import Sequence

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NEGLIGIBLE = 1e-14

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]


class Sampled(NamedTuple):
    """The chosen token. `logprob` and `top` (ids and log-probabilities) only if asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class InvalidLogits(ValueError):
    """A row has no finite maximum: the model, or a bias, left nothing to choose."""


class Sampler:
    """Samples for sequences of one model. `end_tokens` are what `min_tokens` forbids."""

    def __init__(self, end_tokens: frozenset[int]) -> None:
        self._end_tokens = np.array(sorted(end_tokens), dtype=np.intp)

    def rows(self, logits: Logits) -> Rows:
        """Get ready to sample from logits of shape (rows, vocabulary), which may be overwritten."""
        return Rows(self, logits)

    def adjusts(self, sequence: Sequence) -> bool:
        """True if the logits are changed before a token is chosen."""
        p = sequence.sampling
        return (
            sequence.matcher is not None
            or p.repetition_penalty != 1.0
            or p.frequency_penalty != 0.0
            or p.presence_penalty != 0.0
            or bool(p.logit_bias)
            or sequence.generated < p.min_tokens
        )

    def adjust(self, row: Row, sequence: Sequence) -> None:
        """Penalties, bias, `min_tokens` and the constraint, in place."""
        params = sequence.sampling
        if params.repetition_penalty != 1.0:
            seen = np.unique(np.array(sequence.tokens, dtype=np.intp))
            values = row[seen]
            factor = np.float32(params.repetition_penalty)
            row[seen] = np.where(values > 0, values / factor, values * factor)
        if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
            output = np.array(sequence.tokens[sequence.prompt_length :], dtype=np.intp)
            ids, counts = np.unique(output, return_counts=True)
            row[ids] -= (params.frequency_penalty * counts + params.presence_penalty).astype(
                np.float32
            )
        for token, bias in params.logit_bias.items():
            row[token] += np.float32(bias)
        if sequence.generated < params.min_tokens:
            row[self._end_tokens] = -np.inf
            row[list(params.stop_token_ids)] = -np.inf
        if sequence.matcher is not None:
            sequence.matcher.mask(row)


class Rows:
    """The logits of one step. Rows of one sequence are sampled in order, as it grows."""

    def __init__(self, sampler: Sampler, logits: Logits) -> None:
        self._sampler = sampler
        self._logits = logits
        # For all rows in one pass: most need nothing else.
        self._best = logits.argmax(axis=1) if len(logits) else np.empty(0, np.intp)

    def sample(self, index: int, sequence: Sequence) -> Sampled:
        """The token after `sequence.tokens`.

        Raises `InvalidLogits`, and the `ThemisError` of a constraint that cannot go on.
        """
        row, params = self._logits[index], sequence.sampling
        token, original = int(self._best[index]), row
        if self._sampler.adjusts(sequence):
            if params.logprobs is not None:
                original = row.copy()
            self._sampler.adjust(row, sequence)
            token = int(row.argmax())
        if not np.isfinite(row[token]):
            raise InvalidLogits(f"the best logit is {row[token]}")
        if not params.greedy:
            token = choose(row, params, sequence.seed, len(sequence.tokens))
        if params.logprobs is None:
            return Sampled(token)
        return _report(original, token, params)


def choose(row: Row, params: SamplingParams, seed: int, position: int) -> int:
    """Sample one token of `row` (logits) for this position of a sequence with this seed."""
    weights = np.exp((row - row.max()) / np.float32(params.temperature))
    ids = _survivors(weights, params)
    # Of independent exponential variables with these rates, each is the first to ring with its
    # own probability; that is the Gumbel-max trick with one logarithm less.
    return int(ids[np.argmax(weights[ids] / exponential(seed, position, ids))])


def _survivors(weights: Row, params: SamplingParams) -> Ids:
    """Ids left by top-k, top-p, min-p and typical-p; `weights` are probabilities over the largest.

    Ties are broken by the lower id.
    """
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        # What is left out has less mass, all together, than a float32 can add to 1.
        ids = np.flatnonzero(weights >= _NEGLIGIBLE)
    else:
        ids = _most_probable(weights, params)
    return ids if params.typical_p == 1.0 else _typical(weights, ids, params.typical_p)


def _most_probable(weights: Row, params: SamplingParams) -> Ids:
    ids = _candidates(weights, params)
    ids = ids[np.lexsort((ids, -weights[ids]))]
    if params.top_k:
        ids = ids[: params.top_k]
    if params.top_p < 1.0:
        cumulative = np.cumsum(weights[ids], dtype=np.float64)
        total = cumulative[-1] if params.top_k else weights.sum(dtype=np.float64)
        # Tokens are kept while the mass before them is below top_p: at least one always is.
        ids = ids[: int(np.searchsorted(cumulative, params.top_p * total, side="left")) + 1]
    if params.min_p > 0.0:
        ids = ids[weights[ids] >= params.min_p * weights[ids[0]]]
    return ids


def _typical(weights: Row, ids: Ids, mass: float) -> Ids:
    """The ids whose information is nearest to the entropy, until they have so much mass."""
    probabilities = weights[ids].astype(np.float64)
    probabilities /= probabilities.sum()
    information = -np.log(probabilities)
    distance = np.abs(information - (probabilities * information).sum())
    order = np.lexsort((ids, distance))
    cumulative = np.cumsum(probabilities[order])
    return ids[order[: int(np.searchsorted(cumulative, mass, side="left")) + 1]]


def _candidates(weights: Row, params: SamplingParams) -> Ids:
    """A superset of the survivors, found by threshold: sorting a whole vocabulary is slow."""
    total = weights.sum()
    threshold = 1e-2
    while threshold > 1e-12:
        ids = np.flatnonzero(weights >= threshold)
        if params.top_k:
            enough = len(ids) >= params.top_k
        else:
            enough = params.top_p < 1.0 and bool(weights[ids].sum() >= params.top_p * total)
        if enough or params.min_p >= threshold:
            return ids
        threshold *= 1e-2
    return np.arange(len(weights))


def _report(row: Row, token: int, params: SamplingParams) -> Sampled:
    """The token with its log-probability and the best alternatives."""
    values = row.astype(np.float64)
    peak = values.max()
    values -= peak + np.log(np.exp(values - peak).sum())
    count = min(params.logprobs or 0, len(values))
    if not count:
        return Sampled(token, float(values[token]))
    top = np.argpartition(-values, count - 1)[:count]
    top = top[np.lexsort((top, -values[top]))]
    return Sampled(token, float(values[token]), tuple((int(i), float(values[i])) for i in top))


def exponential(seed: int, position: int, ids: Ids) -> npt.NDArray[np.float64]:
    """Exponentially distributed numbers, one for each token id: a hash of all three arguments.

    The hash is SplitMix64 (Steele et al. 2014), once over seed and position, once over the ids.
    """
    start = _mix(np.array([(seed + (position + 1) * int(_GOLDEN)) % 2**64], np.uint64))
    bits = _mix(start + (ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    # 53 bits, and half a step from 0, whose logarithm would be infinite.
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    numbers: npt.NDArray[np.float64] = -np.log(uniform)
    return numbers


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # Arithmetic on arrays of uint64 wraps around, as it must here.
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
