"""`ReferenceRunner` keeps the contract of `ModelRunner`."""

from __future__ import annotations

import numpy as np
import pytest

import themis_tiny_model
from themis_core.errors import BackendFailed
from themis_engine import Batch, Logits, ModelRunner
from themis_testkit.reference.runner import ReferenceRunner

FIRST, SECOND = [20, 21, 22, 23, 24, 25], [90, 91, 92]


def runner(parallel: int = 4, kv_tokens: int = 64) -> ReferenceRunner:
    directory = themis_tiny_model.path("hf")
    return ReferenceRunner(directory, parallel=parallel, kv_tokens=kv_tokens)


def batch(*parts: tuple[int, int, list[int]], rows: list[int] | None = None) -> Batch:
    """Of (sequence, first position, tokens); without `rows`, all logits are wanted."""
    sequences = [sequence for sequence, _, tokens in parts for _ in tokens]
    positions = [start + i for _, start, tokens in parts for i in range(len(tokens))]
    all_tokens = [token for _, _, tokens in parts for token in tokens]
    wanted = range(len(all_tokens)) if rows is None else rows
    return Batch(
        tokens=np.array(all_tokens, np.int32),
        positions=np.array(positions, np.int32),
        sequences=np.array(sequences, np.int32),
        logit_rows=np.array(wanted, np.int32),
    )


def alone(tokens: list[int]) -> Logits:
    return runner().forward(batch((0, 0, tokens)))


def test_it_is_a_runner() -> None:
    assert isinstance(runner(), ModelRunner)


def test_shapes_and_wanted_rows() -> None:
    model = runner()
    none = model.forward(batch((0, 0, FIRST), rows=[]))
    assert none.shape == (0, model.info.vocab_size)
    two = model.forward(batch((1, 0, FIRST), (2, 0, SECOND), rows=[5, 8]))
    assert two.dtype == np.float32
    np.testing.assert_array_equal(two, [alone(FIRST)[-1], alone(SECOND)[-1]])


def test_sequences_may_be_interleaved() -> None:
    parts = [(s, i, [t]) for i in range(3) for s, t in ((0, FIRST[i]), (3, SECOND[i]))]
    logits = runner().forward(batch(*parts))
    np.testing.assert_array_equal(logits[0::2], alone(FIRST[:3]))
    np.testing.assert_array_equal(logits[1::2], alone(SECOND))


def test_copy_truncate_free() -> None:
    model = runner()
    model.forward(batch((0, 0, FIRST)))
    model.copy(0, 1, 4)
    assert model.truncate(0, 2)
    after_copy = model.forward(batch((1, 4, SECOND)))
    np.testing.assert_allclose(after_copy[-1], alone(FIRST[:4] + SECOND)[-1], atol=1e-4)
    after_cut = model.forward(batch((0, 2, SECOND)))
    np.testing.assert_allclose(after_cut[-1], alone(FIRST[:2] + SECOND)[-1], atol=1e-4)
    model.free(0)
    model.free(0)
    np.testing.assert_array_equal(model.forward(batch((0, 0, SECOND))), alone(SECOND))


def test_capacity_is_enforced_and_an_error_changes_nothing() -> None:
    model = runner(kv_tokens=8)
    model.forward(batch((0, 0, FIRST)))
    with pytest.raises(BackendFailed, match="KV cache"):
        model.forward(batch((0, 6, [1]), (1, 0, SECOND)))
    with pytest.raises(BackendFailed, match="KV cache"):
        model.copy(0, 1, 3)
    model.forward(batch((0, 6, [1, 2])))
    model.free(0)
    model.forward(batch((1, 0, FIRST)))


@pytest.mark.parametrize(
    "wrong",
    [
        batch((0, 1, [5])),
        batch((0, 0, [5]), (0, 0, [6])),
        batch((4, 0, [5])),
        batch((-1, 0, [5])),
        batch((0, 0, [100_000])),
        batch((0, 2048, [5])),
        batch(),
    ],
)
def test_breaches_of_the_contract_raise(wrong: Batch) -> None:
    with pytest.raises(BackendFailed):
        runner().forward(wrong)


def test_copy_to_a_sequence_in_use_raises() -> None:
    model = runner()
    model.forward(batch((0, 0, FIRST), (1, 0, SECOND)))
    for source, target, length in ((0, 1, 2), (0, 2, 7)):
        with pytest.raises(BackendFailed):
            model.copy(source, target, length)
