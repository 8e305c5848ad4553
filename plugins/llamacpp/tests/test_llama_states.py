"""Saved states: exact when restored, in any cache layout; damaged ones never reach llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from themis_core.errors import BackendFailed, InternalError
from themis_engine import StateRunner
from themis_llamacpp.runner import LlamaRunner
from themis_tiny_model import path

from .runs import PROMPT, greedy, logits_of, running

LAYOUTS: dict[str, dict[str, Any]] = {
    "unified": {"kv_tokens": 2048},
    "split": {"kv_unified": False, "context": 256},
    "quantised": {"kv_type": "q8_0", "kv_tokens": 2048},
    "plain-attention": {"flash_attention": "off", "kv_tokens": 2048},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def runner(request: pytest.FixtureRequest) -> Iterator[LlamaRunner]:
    with running(**LAYOUTS[request.param]) as made:
        yield made


@pytest.fixture(autouse=True)
def _empty(runner: LlamaRunner) -> None:
    for sequence in range(4):
        runner.free(sequence)


def test_a_restored_sequence_continues_to_the_bit(runner: LlamaRunner) -> None:
    assert isinstance(runner, StateRunner)
    tokens = runner.tokenizer.encode(PROMPT, parse_special=True)
    logits_of(runner, 2, tokens)
    saved = runner.save(2)
    want = logits_of(runner, 2, [*tokens, 7], len(tokens))
    runner.free(2)
    logits_of(runner, 1, [9] * 40)  # So that the cells are others.
    runner.restore(3, saved, len(tokens))
    assert len(runner.save(3)) == len(saved)
    np.testing.assert_array_equal(logits_of(runner, 3, [*tokens, 7], len(tokens)), want)
    runner.free(1)
    runner.restore(1, saved, len(tokens))
    answers = [greedy(runner, [*tokens, 7], 12, sequence=1, held=len(tokens))]
    answers.append(greedy(runner, [*tokens, 7], 12, sequence=0))
    assert answers[0] == answers[1]


def test_a_restored_sequence_can_be_copied_and_cut(runner: LlamaRunner) -> None:
    tokens = runner.tokenizer.encode(PROMPT, parse_special=True)
    want = logits_of(runner, 0, tokens)
    saved = runner.save(0)
    runner.restore(1, saved, len(tokens))
    runner.copy(1, 2, len(tokens) - 3)
    assert runner.truncate(1, len(tokens) - 2)
    for sequence, held in ((1, len(tokens) - 2), (2, len(tokens) - 3)):
        np.testing.assert_allclose(logits_of(runner, sequence, tokens, held), want, atol=0.05)


def test_saving_just_after_copying(runner: LlamaRunner) -> None:
    """A split cache only queues the copy; the state must be that of the copied cells."""
    tokens = runner.tokenizer.encode(PROMPT, parse_special=True)
    logits_of(runner, 0, tokens)
    want = runner.save(0)
    logits_of(runner, 1, [9] * len(tokens))
    runner.free(1)
    runner.copy(0, 1, len(tokens))
    saved = runner.save(1)
    assert len(saved) == len(want)
    runner.restore(2, saved, len(tokens))
    runner.restore(3, want, len(tokens))
    first, second = (logits_of(runner, s, [*tokens, 7], len(tokens)) for s in (2, 3))
    np.testing.assert_array_equal(first, second)


def test_restoring_into_the_source_of_a_copy_that_is_not_done_yet(runner: LlamaRunner) -> None:
    tokens = runner.tokenizer.encode(PROMPT, parse_special=True)
    want = logits_of(runner, 0, tokens)
    logits_of(runner, 2, [9] * 50)
    other = runner.save(2)
    runner.copy(0, 1, len(tokens) - 1)
    runner.free(0)
    runner.restore(0, other, 50)
    got = logits_of(runner, 1, tokens, len(tokens) - 1)
    np.testing.assert_allclose(got, want, atol=0.05)


def test_wrong_calls(runner: LlamaRunner) -> None:
    with pytest.raises(InternalError, match="empty"):
        runner.save(0)
    logits_of(runner, 0, [5, 6, 7])
    saved = runner.save(0)
    for sequence, length in ((0, 3), (9999, 3), (1, 0)):
        with pytest.raises(InternalError):
            runner.restore(sequence, saved, length)
    with pytest.raises(BackendFailed, match="of 3 tokens, not 4"):
        runner.restore(1, saved, 4)
    logits_of(runner, 1, [5])  # It stayed empty.


def test_a_state_that_does_not_fit_leaves_the_target_empty() -> None:
    with running(kv_tokens=256, prefix_sequences=0) as runner:
        logits_of(runner, 0, [5] * 200)
        saved = runner.save(0)
        with pytest.raises(BackendFailed, match="cannot be restored"):
            runner.restore(1, saved, 200)
        logits_of(runner, 1, [5] * 20)


def test_the_state_of_another_model_is_refused() -> None:
    with running() as runner, running(path=str(path("draft-gguf-f16"))) as other:
        logits_of(runner, 0, [5] * 20)
        with pytest.raises(BackendFailed, match="cannot be restored"):
            other.restore(0, runner.save(0), 20)
        logits_of(other, 0, [5] * 20)
        assert runner.info.fingerprint != other.info.fingerprint


_state: list[tuple[LlamaRunner, bytes]] = []


@pytest.fixture(scope="module")
def _saved() -> Iterator[None]:
    with running(kv_tokens=256) as runner:
        logits_of(runner, 0, [5] * 20)
        _state.append((runner, runner.save(0)))
        yield
        _state.clear()


@pytest.mark.usefixtures("_saved")
@settings(max_examples=150)
@given(st.integers(0, 2**24), st.integers(1, 255), st.integers(0, 2**24))
def test_any_damage_is_an_error(at: int, change: int, cut: int) -> None:
    runner, saved = _state[0]
    damaged = bytearray(saved)
    damaged[at % len(saved)] ^= change
    whole = bytes(damaged)
    for state in (whole, saved[: cut % len(saved)], saved + b"\0", b""):
        with pytest.raises(BackendFailed, match="cannot be restored"):
            runner.restore(1, state, 20)
    runner.restore(1, saved, 20)
    runner.free(1)


def test_fingerprints_tell_files_and_settings_apart(tmp_path: Path) -> None:
    def of(**changes: object) -> str:
        with running(**{"context": 256, **changes}) as runner:
            return runner.info.fingerprint

    plain = of()
    assert of() == plain == of(threads=2) == of(prefix_sequences=3)
    different = [of(kv_type="q8_0"), of(kv_unified=False), of(path=str(path("gguf-q8_0")))]
    assert len({plain, *different}) == 4
    data = bytearray(path("gguf-f16").read_bytes())
    data[-1000:] = bytes(reversed(data[-1000:]))  # The norm at the end: 1,024 bytes.
    (tmp_path / "other.gguf").write_bytes(bytes(data))
    assert of(path=str(tmp_path / "other.gguf")) != plain
    (tmp_path / "same.gguf").write_bytes(path("gguf-f16").read_bytes())
    assert of(path=str(tmp_path / "same.gguf")) == plain
