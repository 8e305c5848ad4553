"""A runner: the logits of `forward`, compared with recomputation."""

from __future__ import annotations

import numpy as np
import pytest

from themis_engine import ModelRunner
from themis_testkit.conformance.runner_memory import (
    RunnerBase,
    batch_of,
    on_runner,
    run,
)


class ForwardChecks(RunnerBase):
    """Rows, histories, batches of several sequences."""

    @on_runner
    def test_shape_and_type(self, runner: ModelRunner) -> None:
        """`forward`: "float32 of shape (len(batch.logit_rows), vocab_size)", for 0, 1 and all."""
        tokens = self.tokens(runner, 4)
        for rows in ([], [3], [1, 3], [0, 1, 2, 3]):
            logits = runner.forward(batch_of([(0, 0, tokens)], rows))
            assert logits.dtype == np.float32
            assert logits.shape == (len(rows), runner.info.vocab_size)
            assert np.isfinite(logits).all()
            runner.free(0)

    @on_runner
    def test_rows_are_those_asked_for(self, runner: ModelRunner) -> None:
        """ "row k for position `batch.logit_rows[k]`": compared with each prefix by itself."""
        tokens = self.tokens(runner, 5)
        expected = [self.truth(runner, tokens[: i + 1]) for i in range(5)]
        assert not self.alike(expected[0], expected[1]), "the logits do not depend on the text"
        for rows in ([0, 1, 2, 3, 4], [1, 4], [2]):
            logits = runner.forward(batch_of([(0, 0, tokens)], rows)).copy()
            runner.free(0)
            for row, i in zip(logits, rows, strict=True):
                assert self.alike(row, expected[i]), (rows, i)

    @on_runner
    def test_every_earlier_token_counts(self, runner: ModelRunner) -> None:
        """The logits depend on the whole history, its order included."""
        tokens = self.tokens(runner, 4)
        plain = self.truth(runner, tokens)
        for i in range(3):
            other = list(tokens)
            other[i] = next(t for t in self.tokens(runner, 9, seed=3) if t != tokens[i])
            assert not np.array_equal(self.truth(runner, other), plain), f"token {i}"
        swapped = [tokens[1], tokens[0], *tokens[2:]]
        assert not np.array_equal(self.truth(runner, swapped), plain), "the order"

    @on_runner
    def test_in_pieces_as_whole(self, runner: ModelRunner) -> None:
        """`forward` extends what a sequence holds: one by one, or in chunks, gives the same."""
        tokens = self.tokens(runner, 7)
        expected = self.truth(runner, tokens)
        for sizes in ([1] * 7, [3, 4], [6, 1], [2, 2, 3]):
            start, last = 0, expected
            for size in sizes:
                last = run(runner, 0, start, tokens[start : start + size])
                start += size
            runner.free(0)
            assert self.alike(last, expected), sizes

    @on_runner
    def test_sequences_in_one_batch_do_not_mix(self, runner: ModelRunner) -> None:
        """Several sequences, of several lengths, in any order: each as if it were alone."""
        count = min(3, runner.info.max_sequences)
        texts = [self.tokens(runner, 2 + i, seed=i + 1) for i in range(count)]
        alone = [self.truth(runner, text) for text in texts]
        for order in (range(count), reversed(range(count))):
            pieces = [(i, 0, texts[i]) for i in order]
            ends = np.cumsum([len(text) for _, _, text in pieces]) - 1
            logits = runner.forward(batch_of(pieces, ends.tolist())).copy()
            for row, (i, _, _) in zip(logits, pieces, strict=True):
                assert self.alike(row, alone[i]), f"sequence {i}"
                if runner.info.batch_invariant and runner.info.truncates:
                    assert np.array_equal(row, alone[i]), "batch_invariant is declared"
            for i in range(count):
                runner.free(i)

    @on_runner
    def test_steps_of_several_sequences(self, runner: ModelRunner) -> None:
        """Decoding together, prompts among it: the positions of a sequence may lie apart."""
        if runner.info.max_sequences < 2:
            pytest.skip("max_sequences is 1")
        first, second = self.tokens(runner, 5, seed=1), self.tokens(runner, 5, seed=2)
        expected = self.truth(runner, first), self.truth(runner, second)
        runner.forward(batch_of([(0, 0, first[:3])], []))
        runner.forward(batch_of([(0, 3, first[3:4]), (1, 0, second[:3])], [0]))
        mixed = [(1, 3, second[3:4]), (0, 4, first[4:]), (1, 4, second[4:])]
        rows = runner.forward(batch_of(mixed, [1, 2]))
        assert self.alike(rows[0], expected[0])
        assert self.alike(rows[1], expected[1])

    @on_runner
    def test_the_result_may_be_written_into(self, runner: ModelRunner) -> None:
        """ "the engine may write into it": what the runner holds is not harmed by that."""
        tokens = self.tokens(runner, 4)
        expected = self.truth(runner, tokens)
        batch = batch_of([(0, 0, tokens[:3])], [0, 1, 2])
        logits = runner.forward(batch)
        before = logits.copy()
        logits[:] = 1e9
        assert self.alike(run(runner, 0, 3, tokens[3:]), expected)
        runner.free(0)
        assert self.alike(runner.forward(batch), before)

    @on_runner
    def test_the_batch_is_only_read(self, runner: ModelRunner) -> None:
        """The arrays of a batch belong to the engine."""
        batch = batch_of([(0, 0, self.tokens(runner, 4))], [1, 3])
        before = [a.copy() for a in (batch.tokens, batch.positions, batch.sequences)]
        runner.forward(batch)
        after = (batch.tokens, batch.positions, batch.sequences)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert batch.logit_rows.tolist() == [1, 3]
