"""A runner: hidden states, and saved states."""

from __future__ import annotations

import numpy as np
import pytest

from themis_core.errors import BackendFailed
from themis_engine import EmbeddingRunner, ModelRunner, StateRunner
from themis_testkit.conformance.runner_memory import (
    RunnerBase,
    batch_of,
    on_runner,
    run,
)


class StateChecks(RunnerBase):
    """What only some runners have."""

    @on_runner
    def test_hidden_states(self, runner: ModelRunner) -> None:
        """`hidden_states`: float32 of (len(batch.tokens), embedding_size), each of its history."""
        if not (isinstance(runner, EmbeddingRunner) and runner.info.embedding_size):
            pytest.skip("embedding_size is 0")
        tokens = self.tokens(runner, 4)
        whole = runner.hidden_states(batch_of([(0, 0, tokens)], [])).copy()
        runner.free(0)
        assert whole.dtype == np.float32
        assert whole.shape == (4, runner.info.embedding_size)
        for i in range(4):
            part = runner.hidden_states(batch_of([(0, 0, tokens[: i + 1])], [])).copy()
            runner.free(0)
            assert self.alike(part[-1], whole[i]), f"position {i}"

    @on_runner
    def test_saved_states_come_back(self, runner: ModelRunner) -> None:
        """`StateRunner`: "leave the model and come back, bit for bit", into any sequence."""
        if not isinstance(runner, StateRunner):
            pytest.skip("save and restore are not there")
        tokens = self.tokens(runner, 5)
        run(runner, 0, 0, tokens[:4])
        state = runner.save(0)
        expected = run(runner, 0, 4, tokens[4:])
        runner.free(0)
        target = runner.info.max_sequences - 1
        runner.restore(target, state, 4)
        assert np.array_equal(run(runner, target, 4, tokens[4:]), expected)

    @on_runner
    def test_damaged_states_are_refused(self, runner: ModelRunner) -> None:
        """`restore`: "Raises `BackendFailed`" for a wrong length and for what is no state."""
        if not isinstance(runner, StateRunner):
            pytest.skip("save and restore are not there")
        tokens = self.tokens(runner, 4)
        expected = self.truth(runner, tokens)
        run(runner, 0, 0, tokens)
        state = runner.save(0)
        runner.free(0)
        for bad, length in ((state, 3), (state[:-1], 4), (b"", 4), (b"no state at all", 4)):
            with pytest.raises(BackendFailed):
                runner.restore(0, bad, length)
            runner.free(0)
        assert self.alike(self.truth(runner, tokens), expected)
