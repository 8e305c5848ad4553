"""Where llama.cpp would end the process, or compute nonsense in silence, an error comes instead."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from themis_core.errors import InternalError, InvalidRequest, ModelFileInvalid, ModelLoadFailed
from themis_engine import Batch
from themis_llamacpp import gguf_header, log
from themis_llamacpp.runner import LlamaRunner
from themis_llamacpp.settings import LlamaCppSettings
from themis_tiny_model import path

GOOD = path("gguf-f16")
DATA = GOOD.read_bytes()


def made(**changes: object) -> LlamaRunner:
    values: dict[str, object] = {"path": str(GOOD), "threads": 1, "parallel": 4, "kv_tokens": 2048}
    values["prefix_sequences"] = 0
    return LlamaRunner(LlamaCppSettings(**(values | changes)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runner() -> Iterator[LlamaRunner]:
    runner = made()
    yield runner
    runner.close()


@pytest.fixture(autouse=True)
def _empty(runner: LlamaRunner) -> None:
    for sequence in range(4):
        runner.free(sequence)


def batch(sequence: int, start: int, count: int, rows: list[int] | None = None) -> Batch:
    return Batch(
        tokens=np.full(count, 5, dtype=np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        sequences=np.full(count, sequence, dtype=np.int32),
        logit_rows=np.array([count - 1] if rows is None else rows, dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (lambda r: r.forward(batch(0, 0, 0, [])), "a batch of 0 positions"),
        (lambda r: r.forward(batch(0, 0, 513)), "a batch of 513 positions"),
        (lambda r: r.forward(batch(4, 0, 1)), "does not exist"),
        (lambda r: r.forward(batch(-1, 0, 1)), "does not exist"),
        (lambda r: r.forward(batch(0, 50, 1)), "do not continue"),
        (lambda r: r.forward(batch(0, 0, 2, [1, 1])), "logit_rows"),
        (lambda r: r.forward(batch(0, 0, 2, [2])), "logit_rows"),
        (lambda r: r.forward(batch(0, 0, 2, [-1])), "logit_rows"),
        (lambda r: r.free(300), "no sequence 300"),
        (lambda r: r.free(-1), "no sequence -1"),
        (lambda r: r.truncate(-1, 0), "no sequence -1"),
        (lambda r: r.truncate(0, -1), "cannot truncate"),
        (lambda r: r.copy(0, 9, 0), "no sequence 9"),
        (lambda r: r.copy(0, 1, 1), "cannot copy"),
    ],
)
def test_wrong_calls_are_errors_and_change_nothing(
    runner: LlamaRunner, call: Callable[[LlamaRunner], object], cause: str
) -> None:
    with pytest.raises(InternalError, match=cause):
        call(runner)
    assert runner.forward(batch(0, 0, 3)).shape == (1, runner.info.vocab_size)


@pytest.mark.parametrize("changes", [{"kv_tokens": 100}, {"context": 100, "parallel": 1}])
def test_the_largest_batch_is_the_one_that_llama_cpp_takes(changes: dict[str, object]) -> None:
    """It lowers n_batch to the size of a small KV cache; a larger batch would end the process."""
    runner = made(**({"kv_tokens": None} | changes))
    try:
        most = runner.info.max_batch
        assert most == 100
        assert runner.forward(batch(0, 0, most)).shape[0] == 1
        with pytest.raises(InternalError):
            runner.forward(batch(0, most, most + 1))
    finally:
        runner.close()


@pytest.mark.parametrize("split", [False, True])
def test_copying_a_part_and_nothing(split: bool) -> None:
    runner = made(kv_unified=not split, kv_tokens=None, context=256)
    try:
        runner.forward(batch(0, 0, 9))
        runner.copy(0, 1, 0)
        runner.copy(0, 2, 4)
        shared = runner.forward(batch(2, 4, 3)).copy()
        np.testing.assert_allclose(shared, runner.forward(batch(1, 0, 7)), atol=0.05)
        assert runner.truncate(2, 100)
        assert runner.truncate(2, 0)
        runner.forward(batch(2, 0, 2))
    finally:
        runner.close()


def test_ids_outside_the_vocabulary_stand_for_nothing(runner: LlamaRunner) -> None:
    for token in (-1, runner.info.vocab_size, 10**9):
        assert runner.tokenizer.token_bytes(token) == b""


def test_lone_surrogates_are_refused(runner: LlamaRunner) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        runner.tokenizer.encode("a\ud800", parse_special=False)


def flag(data: bytes, key: str) -> bytes:
    """The file with a truth value set to true."""
    at = data.index(key.encode()) + len(key) + 4
    return data[:at] + b"\x01" + data[at + 1 :]


def test_the_start_token_comes_once_and_the_end_token_never(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(
        flag(flag(DATA, "tokenizer.ggml.add_bos_token"), "tokenizer.ggml.add_eos_token")
    )
    runner = made(path=str(file))
    try:
        tokenizer = runner.tokenizer
        start = tokenizer.template_tokens["bos_token"]
        plain = tokenizer.encode("Hello", parse_special=True)
        assert tokenizer.encode(start + "Hello", parse_special=True) == plain
        assert tokenizer.encode(start, parse_special=True) == plain[:1]
        assert plain[-1] not in tokenizer.end_tokens
        assert len(tokenizer.encode(start, parse_special=False)) > 2
    finally:
        runner.close()


def test_what_cannot_fit_into_memory_is_refused_at_once() -> None:
    with pytest.raises(ModelLoadFailed, match="GiB of memory"):
        made(kv_tokens=10**12)


def test_a_split_cache_refuses_kv_tokens() -> None:
    with pytest.raises(ValueError, match="kv_unified = false"):
        made(kv_unified=False)


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("llama.block_count", struct.pack("<I", 0), "claims 0 layers"),
        ("llama.block_count", struct.pack("<I", 2**31), "claims 2147483648 layers"),
        ("llama.attention.layer_norm_rms_epsilon", struct.pack("<f", -1.0), "epsilon is -1.0"),
        ("llama.attention.layer_norm_rms_epsilon", b"\xff\xff\xff\xff", "epsilon is nan"),
    ],
)
def test_numbers_that_would_end_the_process(
    key: str, value: bytes, cause: str, tmp_path: Path
) -> None:
    at = DATA.index(key.encode()) + len(key) + 4
    file = tmp_path / "model.gguf"
    file.write_bytes(DATA[:at] + value + DATA[at + len(value) :])
    with pytest.raises(ModelFileInvalid, match=cause):
        gguf_header.check(file)


def test_a_failure_tells_its_own_reason_only(runner: LlamaRunner) -> None:
    log.receive(4, b"an older story\n", None)  # type: ignore[arg-type]
    wrong = batch(0, 0, 1)
    wrong.tokens[0] = 10**6
    with pytest.raises(Exception, match="invalid token") as caught:
        runner.forward(wrong)
    assert "older story" not in str(caught.value)


def test_loading_and_closing_leaves_nothing_open() -> None:
    files = Path("/proc/self/fd")
    if not files.is_dir():
        pytest.skip("needs /proc")
    made().close()
    before = len(list(files.iterdir()))
    for _ in range(20):
        made(kv_tokens=256).close()
    assert len(list(files.iterdir())) <= before
