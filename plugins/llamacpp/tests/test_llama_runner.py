"""`LlamaRunner` on the bundled model: batched equals alone, and KV operations are exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from themis_core.errors import BackendFailed, ModelLoadFailed
from themis_engine import Batch, Logits
from themis_llamacpp import runner as runner_module
from themis_llamacpp.native import lib
from themis_llamacpp.runner import LlamaRunner
from themis_llamacpp.settings import LlamaCppSettings
from themis_llamacpp.tokenizer import LlamaTokenizer
from themis_tiny_model import path

TEXT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def settings(**changes: object) -> LlamaCppSettings:
    values = {"path": str(path("gguf-f16")), "threads": 1, "parallel": 8, "kv_tokens": 2048}
    return LlamaCppSettings(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["unified", "split"])
def runner(request: pytest.FixtureRequest) -> Iterator[LlamaRunner]:
    split = {"kv_unified": False, "context": 256, "kv_tokens": None}
    made = LlamaRunner(settings(**split) if request.param == "split" else settings())
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "runner" in request.fixturenames:
        for sequence in range(8):
            request.getfixturevalue("runner").free(sequence)


def batch(*parts: tuple[int, int, list[int]], rows: str = "last") -> Batch:
    """From (sequence, start, tokens); logits of each part's last token, or of all."""
    tokens = [t for _, _, part in parts for t in part]
    ends = np.cumsum([len(part) for _, _, part in parts]) - 1
    return Batch(
        tokens=np.array(tokens, dtype=np.int32),
        positions=np.array([s + i for _, s, p in parts for i in range(len(p))], dtype=np.int32),
        sequences=np.array([q for q, _, p in parts for _ in p], dtype=np.int32),
        logit_rows=np.array(ends if rows == "last" else range(len(tokens)), dtype=np.int32),
    )


def forward(runner: LlamaRunner, *parts: tuple[int, int, list[int]], rows: str = "last") -> Logits:
    return runner.forward(batch(*parts, rows=rows)).copy()


def ids(runner: LlamaRunner, text: str = TEXT) -> list[int]:
    return runner.tokenizer.encode(text, parse_special=True)


def close(a: Logits, b: Logits) -> None:
    assert np.array_equal(a.argmax(-1), b.argmax(-1))
    np.testing.assert_allclose(a, b, atol=0.05)


def test_a_batch_equals_each_alone(runner: LlamaRunner) -> None:
    prompts = [ids(runner, f"{word} {TEXT}") for word in ("One", "Zwei", "three", "4")]
    alone = []
    for prompt in prompts:
        alone.append(forward(runner, (0, 0, prompt))[0])
        runner.free(0)
    together = forward(runner, *((i, 0, p) for i, p in enumerate(prompts)))
    close(together, np.stack(alone))


def test_chunks_and_rows_equal_the_whole(runner: LlamaRunner) -> None:
    prompt = ids(runner)
    whole = forward(runner, (0, 0, prompt), rows="all")
    assert whole.shape == (len(prompt), runner.info.vocab_size)
    first = forward(runner, (1, 0, prompt[:5]), rows="all")
    rest = forward(runner, (1, 5, prompt[5:]), rows="all")
    close(np.concatenate([first, rest]), whole)


def test_a_copied_prefix_continues_like_its_source(runner: LlamaRunner) -> None:
    prompt = ids(runner)
    want = forward(runner, (0, 0, prompt))
    for target in (1, 2):
        runner.copy(0, target, 4)
    close(forward(runner, (1, 4, prompt[4:])), want)
    other = forward(runner, (2, 4, [*prompt[4:-1], 5]))
    runner.free(0)
    close(forward(runner, (3, 0, [*prompt[:-1], 5])), other)


def test_truncating_forgets_exactly(runner: LlamaRunner) -> None:
    prompt = ids(runner)
    want = forward(runner, (0, 0, prompt))
    forward(runner, (0, len(prompt), [7, 8, 9]))
    assert runner.truncate(0, len(prompt) - 2)
    close(forward(runner, (0, len(prompt) - 2, prompt[-2:])), want)


def test_a_freed_sequence_starts_anew(runner: LlamaRunner) -> None:
    prompt = ids(runner)
    forward(runner, (0, 0, [5] * 30))
    runner.free(0)
    runner.free(0)
    close(forward(runner, (0, 0, prompt)), forward(runner, (1, 0, prompt)))


def test_a_failed_step_leaves_the_cache_as_it_was() -> None:
    runner = LlamaRunner(settings(context=64, kv_tokens=256, parallel=2, micro_batch_size=32))
    try:
        prompt = ids(runner)
        forward(runner, (0, 0, [5] * 200))
        with pytest.raises(BackendFailed, match="no room in the KV cache"):
            forward(runner, (1, 0, [6] * 100))
        want = forward(runner, (1, 0, prompt))
        runner.free(0)
        runner.free(1)
        close(forward(runner, (0, 0, prompt)), want)
    finally:
        runner.close()


def test_closing_twice_is_fine_and_frees_the_file() -> None:
    runner = LlamaRunner(settings())
    runner.close()
    runner.close()


def test_the_description_is_the_models(runner: LlamaRunner) -> None:
    info = runner.info
    assert info.vocab_size == runner.tokenizer.vocab_size > 1000
    assert 1_000_000 < info.parameters < 4_000_000
    assert info.max_sequences == (8 + 64 if info.shares_kv else 8)
    assert info.kv_capacity >= 2048
    assert "llama" in info.description


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"context": 10**6}, "trained for"),
        ({"gpu_layers": 1}, "without a GPU"),
        ({"kv_type": "q4_0", "flash_attention": "off"}, "cannot make a context"),
    ],
)
def test_settings_that_cannot_work_say_why(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ModelLoadFailed, match=expected):
        LlamaRunner(settings(**changes))


def test_the_batch_must_hold_a_token_of_each_sequence() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        settings(parallel=64, batch_size=32)


@given(st.text(max_size=60))
def test_text_survives_tokenising(text: str) -> None:
    tokenizer = _tokenizer()
    tokens = tokenizer.encode(text, parse_special=False)
    assert b"".join(map(tokenizer.token_bytes, tokens)).decode() == text


def test_special_tokens_are_parsed_only_when_asked() -> None:
    tokenizer = _tokenizer()
    special = tokenizer.encode("<|im_end|>", parse_special=True)
    assert len(special) == 1
    assert special[0] in tokenizer.end_tokens
    assert tokenizer.token_bytes(special[0]) == b""
    plain = tokenizer.encode("<|im_end|>", parse_special=False)
    assert len(plain) > 1
    assert b"".join(map(tokenizer.token_bytes, plain)) == b"<|im_end|>"


def test_special_tokens_are_those_without_bytes() -> None:
    tokenizer = _tokenizer()
    special = tokenizer.special_tokens
    assert {"<|im_start|>", "<|im_end|>"} <= special.keys()
    for text, token in special.items():
        assert tokenizer.encode(text, parse_special=True) == [token]
        assert tokenizer.token_bytes(token) == b""
    silent = {t for t in range(tokenizer.vocab_size) if not tokenizer.token_bytes(t)}
    assert set(special.values()) == silent
    assert "<tool_call>" not in special


def test_nothing_is_left_if_the_tokenizer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    real = lib.llama_model_free

    def free(model: object) -> None:
        freed.append(model)
        real(model)

    def fail(model: object) -> None:
        raise RuntimeError("no vocabulary")

    monkeypatch.setattr(lib, "llama_model_free", free)
    monkeypatch.setattr(runner_module, "LlamaTokenizer", fail)
    with pytest.raises(RuntimeError, match="no vocabulary"):
        LlamaRunner(settings())
    assert len(freed) == 1


def test_tool_call_marks_are_text() -> None:
    tokenizer = _tokenizer()
    (mark,) = tokenizer.encode("<tool_call>", parse_special=True)
    assert tokenizer.token_bytes(mark) == b"<tool_call>"
    assert "im_start" in (tokenizer.chat_template or "")


_made: list[LlamaRunner] = []


def _tokenizer() -> LlamaTokenizer:
    if not _made:
        _made.append(LlamaRunner(settings()))
    return _made[0].tokenizer


@pytest.fixture(scope="module", autouse=True)
def _close_tokenizer() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()
