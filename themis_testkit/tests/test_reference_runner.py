"""`ReferenceRunner` keeps the contract of `ModelRunner`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import themis_tiny_model
from themis_core.errors import BackendFailed
from themis_core.messages import AdapterWeight
from themis_engine import (
    AdapterRunner,
    Batch,
    EmbeddingRunner,
    Logits,
    ModelRunner,
    StateRunner,
)
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


def with_adapters(**options: int) -> ReferenceRunner:
    model = runner(**options)
    for name in ("german", "json"):
        model.load_adapter(name, str(themis_tiny_model.path(f"lora-{name}-peft")))
    return model


GERMAN, JSON = (AdapterWeight(name="german"),), (AdapterWeight(name="json"),)


def test_it_is_every_kind_of_runner() -> None:
    for kind in (AdapterRunner, EmbeddingRunner, StateRunner):
        assert isinstance(runner(), kind)
    info = runner().info
    assert (info.embedding_size, info.pooling, info.causal, info.truncates) == (
        256,
        "last",
        True,
        True,
    )
    other = ReferenceRunner(themis_tiny_model.path("draft-hf"))
    assert info.fingerprint == runner().info.fingerprint != other.info.fingerprint


def test_adapters_change_logits_and_states() -> None:
    model = with_adapters()
    seen = []
    for adapters in ((), GERMAN, JSON, (*GERMAN, *JSON), (AdapterWeight(name="json", weight=0.5),)):
        one = replace(batch((0, 0, FIRST)), adapters=adapters)
        seen.append(model.forward(one))
        model.free(0)
        states = replace(batch((0, 0, FIRST), rows=[]), adapters=adapters)
        hidden = model.hidden_states(states)
        model.free(0)
        assert hidden.shape == (len(FIRST), 256)
        assert np.isfinite(hidden).all()
    for i, one_row in enumerate(seen):
        assert all(np.abs(one_row - other).max() > 0.1 for other in seen[:i])
    np.testing.assert_array_equal(seen[0], alone(FIRST))


def test_hidden_states_extend_the_cache_and_give_the_logits() -> None:
    model = runner()
    hidden = model.hidden_states(batch((0, 0, FIRST), rows=[]))
    embedding = model._llama._weights["model.embed_tokens.weight"]
    np.testing.assert_allclose(hidden @ embedding.T, alone(FIRST), rtol=1e-3, atol=1e-3)
    after = model.forward(batch((0, len(FIRST), SECOND)))
    np.testing.assert_allclose(after, alone(FIRST + SECOND)[len(FIRST) :], rtol=1e-3, atol=1e-3)
    with pytest.raises(BackendFailed, match="beside"):
        model.hidden_states(batch((1, 0, FIRST)))


def test_breaches_with_adapters_raise() -> None:
    model = with_adapters()
    model.forward(replace(batch((0, 0, FIRST)), adapters=JSON))
    more = batch((0, len(FIRST), SECOND))
    for adapters in ((), GERMAN, (AdapterWeight(name="json", weight=0.5),)):
        with pytest.raises(BackendFailed, match="computed with"):
            model.forward(replace(more, adapters=adapters))
    for names, why in (((*JSON, *GERMAN), "sorted"), ((*JSON, *JSON), "twice")):
        with pytest.raises(BackendFailed, match=why):
            model.forward(replace(batch((1, 0, FIRST)), adapters=names))
    unknown = (AdapterWeight(name="french"),)
    with pytest.raises(BackendFailed, match="not loaded"):
        model.forward(replace(batch((1, 0, FIRST)), adapters=unknown))
    with pytest.raises(BackendFailed, match="computed with adapter 'json'"):
        model.unload_adapter("json")
    with pytest.raises(BackendFailed, match="no adapter"):
        model.unload_adapter("french")
    with pytest.raises(BackendFailed, match="already"):
        model.load_adapter("json", str(themis_tiny_model.path("lora-json-peft")))
    model.free(0)
    model.unload_adapter("json")
    with pytest.raises(BackendFailed, match="not loaded"):
        model.forward(replace(batch((0, 0, FIRST)), adapters=JSON))


def test_another_adapter_under_the_same_name() -> None:
    model = with_adapters()
    first = model.forward(replace(batch((0, 0, FIRST)), adapters=JSON))
    model.free(0)
    model.unload_adapter("json")
    model.load_adapter("json", str(themis_tiny_model.path("lora-german-peft")))
    second = model.forward(replace(batch((0, 0, FIRST)), adapters=JSON))
    model.free(0)
    german = model.forward(replace(batch((0, 0, FIRST)), adapters=GERMAN))
    np.testing.assert_array_equal(second, german)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("adapters", [(), JSON])
def test_saved_states_are_exact(adapters: tuple[AdapterWeight, ...]) -> None:
    model = with_adapters()
    model.forward(replace(batch((0, 0, FIRST)), adapters=adapters))
    saved = model.save(0)
    more = replace(batch((0, len(FIRST), SECOND)), adapters=adapters)
    want = model.forward(more)
    model.restore(1, saved, len(FIRST))
    assert model.save(1) == saved
    got = model.forward(replace(more, sequences=more.sequences + 1))
    np.testing.assert_array_equal(got, want)


def test_wrong_states_are_refused_and_leave_the_target_empty() -> None:
    model = runner()
    model.forward(batch((0, 0, FIRST)))
    saved = model.save(0)
    other = ReferenceRunner(themis_tiny_model.path("draft-hf"))
    other.forward(batch((0, 0, FIRST)))
    damaged = bytearray(saved)
    damaged[100] ^= 1
    for wrong in (saved[:-1], saved[:10], b"", bytes(damaged), other.save(0)):
        with pytest.raises(BackendFailed):
            model.restore(1, wrong, len(FIRST))
    for sequence, length in ((1, len(FIRST) - 1), (0, len(FIRST)), (99, len(FIRST))):
        with pytest.raises(BackendFailed):
            model.restore(sequence, saved, length)
    with pytest.raises(BackendFailed, match="empty"):
        model.save(1)
    np.testing.assert_array_equal(model.forward(batch((1, 0, FIRST))), alone(FIRST))


def test_more_ids_than_run_at_once() -> None:
    model = ReferenceRunner(themis_tiny_model.path("hf"), parallel=2, prefix_sequences=3)
    assert model.info.max_sequences == 5
    model.forward(batch((4, 0, FIRST)))
