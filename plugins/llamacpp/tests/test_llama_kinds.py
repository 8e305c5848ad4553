"""Recurrent and sliding-window models: what can be cut and shared is exact, and no more is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from themis_core.errors import BackendFailed
from themis_llamacpp.runner import LlamaRunner

from .runs import joined, logits_of, part, running
from .tiny_models import WINDOW, gemma2, mamba

TOKENS = [3 + (7 * i * i + i) % 60 for i in range(80)]


@pytest.fixture(scope="module")
def mamba_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("models") / "mamba.gguf"
    mamba(file)
    return str(file)


@pytest.fixture(scope="module")
def gemma_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("models") / "gemma2.gguf"
    gemma2(file)
    return str(file)


@pytest.fixture(params=["unified", "split"])
def recurrent(request: pytest.FixtureRequest, mamba_file: str) -> Iterator[LlamaRunner]:
    with running(path=mamba_file, kv_unified=request.param == "unified") as runner:
        yield runner


@pytest.fixture(params=["unified", "split"])
def sliding(request: pytest.FixtureRequest, gemma_file: str) -> Iterator[LlamaRunner]:
    with running(path=gemma_file, kv_unified=request.param == "unified") as runner:
        yield runner


def fresh(runner: LlamaRunner, tokens: list[int]) -> np.typing.NDArray[np.float32]:
    """The logits after tokens that are computed anew, in a sequence of their own."""
    logits = logits_of(runner, 3, tokens)
    runner.free(3)
    return logits


def test_recurrent_models_are_not_cut(recurrent: LlamaRunner) -> None:
    assert not recurrent.info.truncates
    want = fresh(recurrent, TOKENS)
    logits_of(recurrent, 0, TOKENS[:50])
    assert not recurrent.truncate(0, 49)
    assert not recurrent.truncate(0, 1)
    with pytest.raises(BackendFailed, match="cannot share"):
        recurrent.copy(0, 1, 49)
    # Nothing has changed, and nothing is in the target.
    np.testing.assert_allclose(logits_of(recurrent, 0, TOKENS, 50), want, atol=1e-4)
    np.testing.assert_allclose(logits_of(recurrent, 1, TOKENS), want, atol=1e-4)
    assert recurrent.truncate(0, 0)
    np.testing.assert_allclose(logits_of(recurrent, 0, TOKENS), want, atol=1e-4)


def test_whole_recurrent_sequences_are_copied_exactly(recurrent: LlamaRunner) -> None:
    logits_of(recurrent, 0, TOKENS[:50])
    recurrent.copy(0, 1, 50)
    recurrent.copy(0, 2, 50)
    other = [*TOKENS[:50], *reversed(TOKENS[50:])]
    first = logits_of(recurrent, 0, TOKENS, 50)
    second = logits_of(recurrent, 1, other, 50)
    np.testing.assert_allclose(first, fresh(recurrent, TOKENS), atol=1e-4)
    np.testing.assert_allclose(second, fresh(recurrent, other), atol=1e-4)
    recurrent.free(0)
    recurrent.free(1)
    np.testing.assert_array_equal(logits_of(recurrent, 2, TOKENS, 50), first)


def test_recurrent_states_are_saved(recurrent: LlamaRunner) -> None:
    logits_of(recurrent, 0, TOKENS[:50])
    recurrent.copy(0, 1, 50)
    saved = recurrent.save(1)
    want = logits_of(recurrent, 0, TOKENS, 50)
    recurrent.restore(2, saved, 50)
    np.testing.assert_array_equal(logits_of(recurrent, 2, TOKENS, 50), want)


def test_a_failed_step_of_a_recurrent_model_leaves_its_sequences_empty(mamba_file: str) -> None:
    with running(path=mamba_file, kv_unified=False) as runner:
        logits_of(runner, 0, TOKENS[:10])
        wrong = part(0, 10, [10**6])
        with pytest.raises(BackendFailed):
            runner.forward(wrong)
        held = 10 if runner._held[0] else 0
        want = fresh(runner, TOKENS)
        np.testing.assert_allclose(logits_of(runner, 0, TOKENS, held), want, atol=1e-4)


def test_recurrent_models_keep_fewer_prefixes(mamba_file: str, gemma_file: str) -> None:
    """Each sequence has a whole state in memory from the start."""
    for file, count in ((mamba_file, 4 + 8), (gemma_file, 4 + 64)):
        with running(path=file) as runner:
            assert runner.info.max_sequences == count


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 40, 79])
def test_sliding_windows_are_cut_exactly(sliding: LlamaRunner, length: int) -> None:
    assert sliding.info.truncates
    other = [*TOKENS[:length], *reversed(TOKENS[length:]), 5]
    want, unlike = fresh(sliding, other), fresh(sliding, [4, *other[1:]])
    assert np.abs(want - unlike).max() > 0.01  # The window is not all that the model sees.
    logits_of(sliding, 0, TOKENS)
    sliding.copy(0, 1, length)
    assert sliding.truncate(0, length)
    for sequence in (0, 1):
        got = logits_of(sliding, sequence, other, length)
        np.testing.assert_allclose(got, want, atol=0.02)


def test_what_has_left_a_window_is_kept_while_there_is_room(gemma_file: str) -> None:
    """llama.cpp by itself would give those cells to others, even where more are free."""
    with running(path=gemma_file, prefix_sequences=0, micro_batch_size=8) as runner:
        logits_of(runner, 1, TOKENS[:5])
        logits_of(runner, 0, TOKENS)
        runner.free(1)
        logits_of(runner, 2, list(reversed(TOKENS)))
        other = [*TOKENS[:30], 5, 6]
        want = fresh(runner, other)
        runner.copy(0, 1, 30)
        assert runner.truncate(0, 30)
        for sequence in (0, 1):
            np.testing.assert_allclose(logits_of(runner, sequence, other, 30), want, atol=0.02)


def test_keepers_hold_no_more_than_their_sequences(gemma_file: str) -> None:
    """All cells are free again when the sequences are."""
    with running(path=gemma_file, kv_tokens=256, prefix_sequences=0) as runner:
        for _ in range(3):
            logits_of(runner, 0, [5] * 200)
            runner.copy(0, 1, 150)
            assert runner.truncate(0, 100)
            with pytest.raises(BackendFailed, match="no room"):
                logits_of(runner, 2, [6] * 150)
            runner.free(1)
            logits_of(runner, 2, [6] * 150)
            runner.free(2)
            logits_of(runner, 2, [6] * WINDOW)
            runner.restore(3, runner.save(2), WINDOW)
            for sequence in range(4):
                runner.free(sequence)


def test_beyond_the_window_nothing_is_saved(sliding: LlamaRunner) -> None:
    """llama.cpp would save a part, and the sequence could no longer be cut."""
    logits_of(sliding, 0, TOKENS)
    saved = sliding.save(0)
    assert saved == b""
    with pytest.raises(BackendFailed, match="cannot be restored"):
        sliding.restore(1, saved, len(TOKENS))
    want = fresh(sliding, TOKENS)
    np.testing.assert_allclose(logits_of(sliding, 1, TOKENS), want, atol=0.02)


def test_a_short_saved_window_is_whole(sliding: LlamaRunner) -> None:
    logits_of(sliding, 0, TOKENS[:WINDOW])
    sliding.restore(1, sliding.save(0), WINDOW)
    assert sliding.truncate(1, 5)
    want = fresh(sliding, TOKENS[:30])
    np.testing.assert_allclose(logits_of(sliding, 1, TOKENS[:30], 5), want, atol=0.02)


def test_random_company_never_changes_a_window(gemma_file: str) -> None:
    """Whatever is copied and cut where it is allowed: the logits are those of a fresh start."""
    chance = np.random.default_rng(5)
    with running(path=gemma_file, kv_tokens=512, prefix_sequences=4) as runner:
        held: dict[int, list[int]] = {i: [] for i in range(3)}
        for _ in range(120):
            sequence, other = chance.choice(3, 2, replace=False).tolist()
            tokens = held[sequence]
            length = int(chance.integers(0, len(tokens) + 1))
            action = chance.integers(4)
            if action == 0 and length:
                assert runner.truncate(sequence, length)
                held[sequence] = tokens[:length]
            elif action == 1 and length:
                runner.free(other)
                held[other] = []
                runner.copy(sequence, other, length)
                held[other] = tokens[:length]
            elif len(tokens) < 100:
                more = [*tokens, *chance.integers(3, 63, int(chance.integers(1, 30))).tolist()]
                got = logits_of(runner, sequence, more, len(tokens))
                held[sequence] = more
                np.testing.assert_allclose(got, fresh(runner, more), atol=0.05)
            else:
                runner.free(sequence)
                held[sequence] = []


def test_a_batch_of_several_recurrent_sequences(recurrent: LlamaRunner) -> None:
    prompts = [TOKENS[:20], TOKENS[20:53], TOKENS[60:61]]
    recurrent.forward(joined(*(part(i, 0, p) for i, p in enumerate(prompts))))
    for i, prompt in enumerate(prompts):
        got = logits_of(recurrent, i, [*prompt, 9], len(prompt))
        np.testing.assert_allclose(got, fresh(recurrent, [*prompt, 9]), atol=1e-4)


def test_paths_may_begin_at_home(
    gemma_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(Path(gemma_file).read_bytes())
    with running(path="~/model.gguf") as runner:
        assert "gemma2" in runner.info.description
