"""What the checks of a runner are made of: prompts, batches, and a runner that is closed behind."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from themis_engine import Batch, Logits, ModelRunner

RunnerFactory = Callable[[], ModelRunner]


class RunnerBase:
    """The fixture, the attributes to adapt, and what a runner is asked."""

    tolerance: ClassVar[float] = 1e-3
    """By how much a logit may differ when the same position is computed in another way."""

    most_positions: ClassVar[int] = 4096
    """Checks that must fill the whole KV cache are skipped if it is larger than this."""

    text: ClassVar[str] = "HELLO"
    """A text that the tokenizer can express exactly."""

    @pytest.fixture
    def runner_factory(self) -> RunnerFactory:
        """A function that gives a loaded runner, whose sequences are empty, at each call."""
        raise NotImplementedError("a conformance suite needs the fixture runner_factory")

    def tokens(self, runner: ModelRunner, count: int, seed: int = 0) -> list[int]:
        """Some token ids, other ones for another seed, none of which ends a generation."""
        ends = runner.tokenizer.end_tokens
        ids = [t for t in range(1, min(runner.info.vocab_size, 200)) if t not in ends]
        return [ids[(7 * i + 13 * seed * (i + 1) + i * i) % len(ids)] for i in range(count)]

    def alike(self, one: Logits, other: Logits) -> bool:
        """True if the logits are the same up to `tolerance`."""
        return one.shape == other.shape and bool(
            np.allclose(one, other, rtol=self.tolerance, atol=self.tolerance)
        )

    def truth(self, runner: ModelRunner, tokens: list[int], sequence: int = 0) -> Logits:
        """The last logits of a text computed whole in one empty sequence, which is freed again."""
        row = run(runner, sequence, 0, tokens)
        runner.free(sequence)
        return row


def on_runner(check: Callable[..., None]) -> Callable[..., None]:
    """Make a pytest function of `check(self, runner)`; the runner is closed behind it."""

    def run_check(self: RunnerBase, runner_factory: RunnerFactory) -> None:
        runner = runner_factory()
        try:
            if not runner.info.causal:
                pytest.skip("the runner is an encoder and does not generate")
            check(self, runner)
        finally:
            runner.close()

    name, signature = check.__name__, inspect.signature(check)
    own, made = signature.parameters.values()
    run_check.__name__, run_check.__doc__ = name, check.__doc__
    run_check.__module__ = check.__module__
    named = made.replace(name="runner_factory")
    run_check.__signature__ = signature.replace(parameters=[own, named])  # type: ignore[attr-defined]
    return run_check


def batch_of(pieces: Sequence[tuple[int, int, list[int]]], rows: Sequence[int]) -> Batch:
    """A batch of (sequence, first position, tokens), in this order."""
    tokens = [token for _, _, piece in pieces for token in piece]
    positions = [start + i for _, start, piece in pieces for i in range(len(piece))]
    sequences = [sequence for sequence, _, piece in pieces for _ in piece]
    arrays: list[Any] = [np.array(a, np.int32) for a in (tokens, positions, sequences, rows)]
    return Batch(tokens=arrays[0], positions=arrays[1], sequences=arrays[2], logit_rows=arrays[3])


def run(runner: ModelRunner, sequence: int, start: int, tokens: list[int]) -> Logits:
    """Compute tokens of one sequence; the logits of the last, as a copy."""
    batch = batch_of([(sequence, start, tokens)], [len(tokens) - 1])
    logits: Logits = runner.forward(batch)[0].copy()
    return logits
