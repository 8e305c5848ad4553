"""A runner: the limits that its `RunnerInfo` declares can be reached, and are."""

from __future__ import annotations

from contextlib import suppress

import pytest

from themis_core.errors import ThemisError
from themis_engine import ModelRunner
from themis_testkit.conformance.runner_memory import (
    RunnerBase,
    batch_of,
    on_runner,
    run,
)


class LimitChecks(RunnerBase):
    """Full batches, all sequences, a full KV cache."""

    @on_runner
    def test_a_full_batch(self, runner: ModelRunner) -> None:
        """`max_batch`: "bounds the positions of one `forward`", and so many are computed."""
        info = runner.info
        count = min(info.max_batch, info.context_length, info.kv_capacity)
        if count > self.most_positions:
            pytest.skip(f"a full batch has {count} positions, more than most_positions")
        tokens = self.tokens(runner, count)
        whole = run(runner, 0, 0, tokens)
        runner.free(0)
        if count > 1:
            runner.forward(batch_of([(0, 0, tokens[: count // 2])], []))
            assert self.alike(run(runner, 0, count // 2, tokens[count // 2 :]), whole)

    @on_runner
    def test_every_sequence_id_can_be_used(self, runner: ModelRunner) -> None:
        """`max_sequences` "bounds the sequence ids: 0 … max_sequences-1", all of them at once."""
        count = min(runner.info.max_sequences, runner.info.kv_capacity // 2)
        texts = [self.tokens(runner, 2, seed=i) for i in range(count)]
        for i, text in enumerate(texts):
            runner.forward(batch_of([(i, 0, text[:1])], []))
        rows = [run(runner, i, 1, text[1:]) for i, text in enumerate(texts)]
        for i in range(count):
            runner.free(i)
        for row, text in zip(rows, texts, strict=True):
            assert self.alike(row, self.truth(runner, text))

    @on_runner
    def test_what_is_freed_can_be_used_again(self, runner: ModelRunner) -> None:
        """`kv_capacity`: freeing, cutting and copying lose none of it, however often."""
        capacity = min(runner.info.kv_capacity, runner.info.context_length)
        if runner.info.kv_capacity > self.most_positions:
            pytest.skip(f"kv_capacity is {runner.info.kv_capacity}, more than most_positions")
        part = max(1, min(capacity // 4, runner.info.max_batch))
        tokens = self.tokens(runner, part)
        rounds = 3 + 8 * runner.info.kv_capacity // part
        for _ in range(min(rounds, 64)):
            runner.forward(batch_of([(0, 0, tokens)], []))
            if runner.info.max_sequences > 1:
                runner.copy(0, 1, part)
                runner.free(1)
            if runner.info.truncates:
                assert runner.truncate(0, part // 2)
            runner.free(0)

    @on_runner
    def test_the_whole_capacity_can_be_used(self, runner: ModelRunner) -> None:
        """`kv_capacity` tokens "shared by all sequences" fit, in sequences of any length."""
        pieces = self._pieces(runner, runner.info.kv_capacity)
        for piece in pieces:
            runner.forward(batch_of([piece], []))
        sequence, _, tokens = pieces[0]
        for other in range(runner.info.max_sequences):
            if other != sequence:
                runner.free(other)
        if runner.info.truncates and len(tokens) > 1:
            # What is there was not harmed by the rest.
            end = len(tokens) - 1
            assert runner.truncate(sequence, end)
            last = run(runner, sequence, end, tokens[end:])
            runner.free(sequence)
            assert self.alike(last, self.truth(runner, tokens))

    @on_runner
    def test_beyond_the_capacity(self, runner: ModelRunner) -> None:
        """The contract asks the engine to keep to `kv_capacity`. If it does not, the runner may
        compute nevertheless, or raise a `ThemisError`, "and the runner is used on"."""
        info = runner.info
        if info.kv_capacity >= info.max_sequences * info.context_length:
            pytest.skip("the KV cache holds the full context of all sequences")
        tokens = self.tokens(runner, 3)
        expected = self.truth(runner, tokens)
        with suppress(ThemisError):
            for piece in self._pieces(runner, info.kv_capacity + min(info.max_batch, 64)):
                runner.forward(batch_of([piece], []))
        for sequence in range(info.max_sequences):
            runner.free(sequence)
        assert self.alike(self.truth(runner, tokens), expected)

    def _pieces(self, runner: ModelRunner, count: int) -> list[tuple[int, int, list[int]]]:
        """Batches of so many positions in all, one sequence after the other being filled."""
        info = runner.info
        count = min(count, info.max_sequences * info.context_length)
        if count > self.most_positions:
            pytest.skip(f"kv_capacity is {info.kv_capacity}, more than most_positions")
        pieces = []
        for sequence in range(info.max_sequences):
            start = 0
            while count and start < info.context_length:
                size = min(count, info.max_batch, info.context_length - start, 64)
                pieces.append((sequence, start, self.tokens(runner, size)))
                start, count = start + size, count - size
        return pieces
