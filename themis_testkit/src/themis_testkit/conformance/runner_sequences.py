"""A runner: what sequences hold after `free`, `truncate` and `copy`."""

from __future__ import annotations

import pytest

from themis_engine import Logits, ModelRunner
from themis_testkit.conformance.runner_memory import (
    RunnerBase,
    batch_of,
    on_runner,
    run,
)


class SequenceChecks(RunnerBase):
    """Each is compared with a sequence that was computed from the beginning."""

    @on_runner
    def test_free_empties(self, runner: ModelRunner) -> None:
        """`free`: what comes next is alone; "Freeing an empty one is fine"; others keep theirs."""
        first, second = self.tokens(runner, 4, seed=1), self.tokens(runner, 4, seed=2)
        expected = self.truth(runner, first), self.truth(runner, second)
        for sequence in range(min(3, runner.info.max_sequences)):
            runner.free(sequence)
            runner.free(sequence)
        run(runner, 0, 0, first)
        runner.free(0)
        assert self.alike(run(runner, 0, 0, second), expected[1])
        if runner.info.max_sequences > 1:
            runner.forward(batch_of([(1, 0, first[:3])], []))
            runner.free(0)
            assert self.alike(run(runner, 1, 3, first[3:]), expected[0])

    @on_runner
    def test_truncate(self, runner: ModelRunner) -> None:
        """`truncate`: "Keep only the first `length` tokens": going on equals recomputation."""
        tokens, other = self.tokens(runner, 6, seed=1), self.tokens(runner, 6, seed=2)
        for length in (5, 3, 1, 0):
            branch = [*tokens[:length], *other[:2]]
            expected = self.truth(runner, branch)
            run(runner, 0, 0, tokens)
            done = runner.truncate(0, length)
            assert done or not runner.info.truncates, "truncates is declared"
            if done:
                assert self.alike(run(runner, 0, length, other[:2]), expected), length
            else:  # "False, and nothing changed"
                expected = self._after(runner, tokens, other)
                assert self.alike(run(runner, 0, 6, other[:1]), expected)
            runner.free(0)

    @on_runner
    def test_truncate_beyond_the_end(self, runner: ModelRunner) -> None:
        """A sequence that is no longer than `length` stays as it is."""
        tokens = self.tokens(runner, 5)
        expected = self.truth(runner, tokens)
        run(runner, 0, 0, tokens[:4])
        runner.truncate(0, 4)
        assert self.alike(run(runner, 0, 4, tokens[4:]), expected)

    @on_runner
    def test_copy(self, runner: ModelRunner) -> None:
        """`copy`: "the first `length` tokens of `source`" are "the whole content" of the target."""
        if runner.info.max_sequences < 2:
            pytest.skip("max_sequences is 1")
        tokens, other = self.tokens(runner, 6, seed=1), self.tokens(runner, 6, seed=2)
        lengths = (6, 4, 1) if runner.info.truncates else (6,)
        for length in lengths:
            expected = self.truth(runner, [*tokens[:length], *other[:2]])
            run(runner, 0, 0, tokens)
            runner.copy(0, 1, length)
            assert self.alike(run(runner, 1, length, other[:2]), expected), length
            runner.free(0)
            runner.free(1)

    @on_runner
    def test_copies_go_their_own_ways(self, runner: ModelRunner) -> None:
        """What happens to one of two copies is not seen in the other: growing, cutting, freeing."""
        if runner.info.max_sequences < 3:
            pytest.skip("max_sequences is below 3")
        tokens, other = self.tokens(runner, 5, seed=1), self.tokens(runner, 5, seed=2)
        base = tokens[:4]
        whole, branch = self.truth(runner, tokens), self.truth(runner, [*base, *other[:2]])
        run(runner, 0, 0, base)
        runner.copy(0, 1, 4)
        runner.copy(1, 2, 4)
        assert self.alike(run(runner, 1, 4, other[:2]), branch)
        assert self.alike(run(runner, 0, 4, tokens[4:]), whole)
        runner.free(1)
        if runner.info.truncates:
            runner.truncate(0, 2)
        runner.free(0)
        assert self.alike(run(runner, 2, 4, tokens[4:]), whole)

    def _after(self, runner: ModelRunner, tokens: list[int], other: list[int]) -> Logits:
        """The truth for going on where nothing was cut, computed in the last sequence."""
        last = runner.info.max_sequences - 1
        if last == 0:
            pytest.skip("max_sequences is 1")
        return self.truth(runner, [*tokens, other[0]], last)
