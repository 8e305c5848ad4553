"""The toy runner keeps the books of a real one, and raises on every breach of the contract."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from themis_core.errors import BackendFailed, ModelFileInvalid
from themis_core.messages import AdapterWeight
from themis_engine import AdapterRunner, Batch, EmbeddingRunner, StateRunner
from themis_testkit.fakes.toy_runner import ToyRunner, greedy, toy_logits, toy_state

A, B = (AdapterWeight(name="a"),), (AdapterWeight(name="b"),)


def batch(
    sequence: int,
    start: int,
    tokens: list[int],
    adapters: tuple[AdapterWeight, ...] = (),
    *,
    rows: bool = True,
) -> Batch:
    count = len(tokens)
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        sequences=np.full(count, sequence, np.int32),
        logit_rows=np.array([count - 1] if rows else [], np.int32),
        adapters=adapters,
    )


def with_adapters(**options: int | bool) -> ToyRunner:
    runner = ToyRunner(**options)  # type: ignore[arg-type]
    runner.load_adapter("a", "a-file")
    runner.load_adapter("b", "b-file")
    return runner


def test_it_is_every_kind_of_runner() -> None:
    runner = ToyRunner()
    for kind in (AdapterRunner, EmbeddingRunner, StateRunner):
        assert isinstance(runner, kind)


def test_logits_depend_on_the_adapters_and_their_files() -> None:
    runner = with_adapters()
    seen: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
    for adapters in ((), A, B, (*A, *B), (AdapterWeight(name="a", weight=0.5),)):
        row = runner.forward(batch(0, 0, [1, 2], adapters))[0]
        np.testing.assert_array_equal(row, toy_logits([1, 2], 0, runner.meaning(adapters)))
        assert not any(np.array_equal(row, other) for other in seen)
        seen.append(row)
        runner.free(0)
    runner.unload_adapter("a")
    runner.load_adapter("a", "another-file")
    row = runner.forward(batch(0, 0, [1, 2], A))[0]
    assert not any(np.array_equal(row, other) for other in seen)
    assert greedy([1, 2], 3) != greedy([1, 2], 3, runner.meaning(A))


def test_hidden_states_tell_histories_apart() -> None:
    runner = with_adapters(embedding_size=8)
    states = runner.hidden_states(batch(0, 0, [1, 2], A, rows=False))
    meaning = runner.meaning(A)
    np.testing.assert_array_equal(states, [toy_state(h, 8, meaning) for h in ([1], [1, 2])])
    more = runner.hidden_states(batch(0, 2, [3], A, rows=False))
    np.testing.assert_array_equal(more[0], toy_state([1, 2, 3], 8, meaning))


def test_an_encoder_wants_whole_texts_and_keeps_none() -> None:
    runner = ToyRunner(embedding_size=8, causal=False)
    whole = runner.hidden_states(batch(0, 0, [1, 2, 3], rows=False))
    assert runner.used_cells() == 0
    first = runner.hidden_states(batch(0, 0, [1, 2], rows=False))
    assert not np.array_equal(first, whole[:2])
    with pytest.raises(AssertionError, match="does not generate"):
        runner.forward(batch(0, 0, [1]))


def test_a_broken_adapter_is_refused() -> None:
    runner = ToyRunner()
    with pytest.raises(ModelFileInvalid):
        runner.load_adapter("a", "broken.gguf")
    runner.load_adapter("a", "fine.gguf")


def test_a_full_cache_changes_nothing() -> None:
    runner = ToyRunner(kv=5)
    runner.forward(batch(0, 0, [1, 2, 3]))
    with pytest.raises(BackendFailed):
        runner.forward(batch(1, 0, [1, 2, 3]))
    assert runner.kv[1] == []
    with pytest.raises(BackendFailed):
        runner.copy(0, 1, 3)
    runner.forward(batch(1, 0, [1, 2]))
    with pytest.raises(BackendFailed):
        runner.restore(2, runner.save(0), 3)
    assert runner.kv[2] == []


BREACHES: dict[str, Callable[[ToyRunner], object]] = {
    "gap": lambda r: r.forward(batch(0, 5, [1])),
    "other-adapters": lambda r: r.forward(batch(0, 3, [1])),
    "other-weight": lambda r: r.forward(batch(0, 3, [1], (AdapterWeight(name="a", weight=2.0),))),
    "unsorted": lambda r: r.forward(batch(1, 0, [1], (*B, *A))),
    "twice": lambda r: r.forward(batch(1, 0, [1], (*A, *A))),
    "not-loaded": lambda r: r.forward(batch(1, 0, [1], (AdapterWeight(name="c"),))),
    "loaded-twice": lambda r: r.load_adapter("a", "x"),
    "unload-unknown": lambda r: r.unload_adapter("c"),
    "unload-in-use": lambda r: r.unload_adapter("a"),
    "copy-onto": lambda r: r.copy(1, 0, 0),
    "copy-too-much": lambda r: r.copy(0, 1, 4),
    "copy-to-itself": lambda r: r.copy(0, 0, 1),
    "no-such-sequence": lambda r: r.free(9),
    "save-empty": lambda r: r.save(1),
    "restore-onto": lambda r: r.restore(0, r.save(0), 3),
    "states-beside-logits": lambda r: r.hidden_states(batch(1, 0, [1])),
    "context": lambda r: r.forward(batch(1, 0, [1] * 20)),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breaches_raise(name: str) -> None:
    runner = with_adapters(embedding_size=4, context=16)
    runner.forward(batch(0, 0, [1, 2, 3], A))
    with pytest.raises(AssertionError):
        BREACHES[name](runner)


def test_a_state_of_adapters_that_have_changed_is_found_out() -> None:
    runner = with_adapters()
    runner.forward(batch(0, 0, [1, 2], A))
    state = runner.save(0)
    runner.free(0)
    runner.unload_adapter("a")
    runner.load_adapter("a", "another-file")
    runner.restore(0, state, 2)
    with pytest.raises(AssertionError, match="other adapters"):
        runner.forward(batch(0, 2, [3], A))


def test_damaged_states_leave_the_target_empty() -> None:
    runner = ToyRunner()
    runner.forward(batch(0, 0, [1, 2, 3]))
    state = runner.save(0)
    for wrong, length in ((state[:-1], 3), (b"\0" + state[1:], 3), (b"", 3), (state, 2)):
        with pytest.raises(BackendFailed):
            runner.restore(1, wrong, length)
    runner.restore(1, state, 3)
    assert runner.kv[1] == [1, 2, 3]


def test_without_truncation_only_whole_sequences() -> None:
    runner = ToyRunner(truncates=False)
    runner.forward(batch(0, 0, [1, 2, 3]))
    assert not runner.truncate(0, 2)
    assert runner.truncate(0, 3)
    assert runner.kv[0] == [1, 2, 3]
    with pytest.raises(AssertionError, match="whole"):
        runner.copy(0, 1, 2)
    runner.copy(0, 1, 3)


class SharedCells(RuleBasedStateMachine):
    """Against sets of sequences for each cell, as llama.cpp's unified cache has them."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = ToyRunner(slots=4, kv=60, shares_kv=True)
        self.owners: list[set[tuple[int, int]]] = []  # Of each cell: sequence and position.

    @rule(sequence=st.integers(0, 3), tokens=st.lists(st.integers(1, 9), min_size=1, max_size=9))
    def grow(self, sequence: int, tokens: list[int]) -> None:
        start = len(self.runner.kv[sequence])
        if start + len(tokens) > 64:
            return
        try:
            self.runner.forward(batch(sequence, start, tokens))
        except BackendFailed:
            assert len(self.owners) + len(tokens) > 60
            return
        self.owners += [{(sequence, start + i)} for i in range(len(tokens))]

    @precondition(lambda self: any(not held for held in self.runner.kv.values()))
    @rule(source=st.integers(0, 3), part=st.floats(0, 1))
    def copy(self, source: int, part: float) -> None:
        target = next(i for i, held in self.runner.kv.items() if not held)
        if target == source:
            return
        length = int(part * len(self.runner.kv[source]))
        self.runner.copy(source, target, length)
        for owners in self.owners:
            owners |= {(target, p) for s, p in owners if s == source and p < length}

    @rule(sequence=st.integers(0, 3), part=st.floats(0, 1))
    def cut(self, sequence: int, part: float) -> None:
        length = int(part * len(self.runner.kv[sequence]))
        assert self.runner.truncate(sequence, length)
        for owners in self.owners:
            owners -= {(s, p) for s, p in owners if s == sequence and p >= length}
        self.owners = [owners for owners in self.owners if owners]

    @invariant()
    def cells_count_once(self) -> None:
        assert self.runner.used_cells() == len(self.owners)


TestSharedCells = SharedCells.TestCase


def test_without_sharing_copies_count_in_full() -> None:
    for shares, used in ((True, 3), (False, 6)):
        runner = ToyRunner(shares_kv=shares)
        runner.forward(batch(0, 0, [1, 2, 3]))
        runner.copy(0, 1, 3)
        assert runner.used_cells() == used
        runner.free(0)
        assert runner.used_cells() == 3
