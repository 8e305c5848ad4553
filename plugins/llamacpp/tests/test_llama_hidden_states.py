"""Hidden states: of the bundled decoder, and of an encoder, against a computation in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from themis_core.errors import BackendFailed, InternalError, ModelLoadFailed
from themis_core.messages import AdapterWeight
from themis_engine import EmbeddingRunner, FramedTokenizer
from themis_llamacpp.runner import LlamaRunner
from themis_tiny_model import path

from .runs import PROMPT, joined, logits_of, part, running
from .tiny_models import CONTEXT, EPSILON, HEADS, LAYERS, WIDTH, Array, Weights, bert, gemma2

TEXTS = [[3 + (7 * i * i + i * n) % 60 for i in range(n)] for n in (1, 5, 37, 12, 200)]


def states(runner: LlamaRunner, *texts: list[int]) -> list[Array]:
    """The states of each text, computed together."""
    batch = joined(*(part(i, 0, text) for i, text in enumerate(texts)))
    ends = np.cumsum([len(text) for text in texts])[:-1]
    return np.split(runner.hidden_states(batch), ends)


@pytest.fixture(scope="module")
def decoder() -> Iterator[LlamaRunner]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Weights]:
    file = tmp_path_factory.mktemp("models") / "bert.gguf"
    return str(file), bert(file)


@pytest.fixture(scope="module", params=["auto", "off"])
def encoder(request: pytest.FixtureRequest, weights: tuple[str, Weights]) -> Iterator[LlamaRunner]:
    with running(
        path=weights[0], parallel=8, batch_size=1024, flash_attention=request.param
    ) as made:
        yield made


def test_what_follows_a_text_that_is_embedded(tmp_path: Path, decoder: LlamaRunner) -> None:
    assert decoder.tokenizer.text_end == ()
    for ends, expected in ((False, ()), (True, (2,))):
        bert(tmp_path / "bert.gguf", add_eos=ends)
        with running(path=str(tmp_path / "bert.gguf"), parallel=2) as runner:
            assert isinstance(runner.tokenizer, FramedTokenizer)
            assert runner.tokenizer.text_end == expected


class TestDecoder:
    @pytest.fixture(autouse=True)
    def _empty(self, decoder: LlamaRunner) -> None:
        for sequence in range(4):
            decoder.free(sequence)

    def test_it_says_what_it_can(self, decoder: LlamaRunner) -> None:
        assert isinstance(decoder, EmbeddingRunner)
        info = decoder.info
        assert (info.embedding_size, info.pooling, info.causal) == (256, "last", True)

    def test_logits_follow_from_them(self, decoder: LlamaRunner) -> None:
        """They are the states after the last norm: times the embedding, they are the logits."""
        gguf = pytest.importorskip("gguf")
        reader = gguf.GGUFReader(path("gguf-f16"))
        (embedding,) = [t.data for t in reader.tensors if t.name == "token_embd.weight"]
        tokens = decoder.tokenizer.encode(PROMPT, parse_special=True)
        (hidden,) = states(decoder, tokens)
        assert hidden.shape == (len(tokens), 256)
        assert hidden.dtype == np.float32
        want = logits_of(decoder, 1, tokens)[0]
        np.testing.assert_allclose(hidden[-1] @ embedding.astype(np.float32).T, want, atol=0.05)

    def test_batched_equals_alone_and_the_cache_is_extended(self, decoder: LlamaRunner) -> None:
        texts = TEXTS[:4]
        together = states(decoder, *texts)
        want = [logits_of(decoder, i, [*text, 9], len(text)) for i, text in enumerate(texts)]
        for i, text in enumerate(texts):
            for sequence in range(4):
                decoder.free(sequence)
            (alone,) = states(decoder, text)
            np.testing.assert_allclose(alone, together[i], atol=0.02)
            assert decoder.truncate(0, 0)
            np.testing.assert_allclose(logits_of(decoder, 0, [*text, 9]), want[i], atol=0.05)

    def test_chunks_equal_the_whole(self, decoder: LlamaRunner) -> None:
        (whole,) = states(decoder, TEXTS[2])
        first = decoder.hidden_states(part(1, 0, TEXTS[2][:9], rows=False))
        rest = decoder.hidden_states(part(1, 9, TEXTS[2][9:], rows=False))
        np.testing.assert_allclose(np.concatenate([first, rest]), whole, atol=0.02)

    def test_generating_goes_on_as_before(self, decoder: LlamaRunner) -> None:
        want = logits_of(decoder, 0, TEXTS[1])
        kept = states(decoder, [], [], TEXTS[2])[2]
        before = kept.copy()
        decoder.free(0)
        np.testing.assert_array_equal(logits_of(decoder, 0, TEXTS[1]), want)
        np.testing.assert_array_equal(kept, before)  # It is no view of what is overwritten.

    def test_adapters_change_them(self, decoder: LlamaRunner) -> None:
        decoder.load_adapter("json", str(path("lora-json-gguf")))
        adapters = (AdapterWeight(name="json"),)
        (plain,) = states(decoder, TEXTS[2])
        changed = decoder.hidden_states(part(1, 0, TEXTS[2], rows=False, adapters=adapters))
        assert np.abs(changed - plain).max() > 0.1
        decoder.unload_adapter("json")

    def test_errors_leave_generating_intact(self, decoder: LlamaRunner) -> None:
        with pytest.raises(InternalError, match="hidden states"):
            decoder.hidden_states(part(0, 0, [5, 6]))
        with pytest.raises(BackendFailed):
            decoder.hidden_states(part(0, 0, [10**6], rows=False))
        assert logits_of(decoder, 0, [5, 6]).shape == (1, decoder.info.vocab_size)


class TestEncoder:
    def test_it_says_that_it_does_not_generate(self, encoder: LlamaRunner) -> None:
        info = encoder.info
        assert not info.causal
        assert not info.truncates
        assert (info.embedding_size, info.pooling) == (WIDTH, "mean")
        assert (info.context_length, info.max_sequences) == (CONTEXT, 8)
        with pytest.raises(InternalError, match="no logits"):
            encoder.forward(part(0, 0, [5]))

    def test_it_computes_what_numpy_computes(
        self, encoder: LlamaRunner, weights: tuple[str, Weights]
    ) -> None:
        for text, found in zip(TEXTS, states(encoder, *TEXTS), strict=True):
            np.testing.assert_allclose(found, encoded(weights[1], text), atol=0.02)

    def test_nothing_is_kept(self, encoder: LlamaRunner) -> None:
        first = states(encoder, *TEXTS[:3])
        again = states(encoder, *TEXTS[:3])
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
        encoder.free(0)

    def test_a_text_is_given_whole_and_within_the_context(self, encoder: LlamaRunner) -> None:
        with pytest.raises(InternalError, match="continue"):
            encoder.hidden_states(part(0, 3, [5], rows=False))
        with pytest.raises(InternalError, match="longer than the context"):
            encoder.hidden_states(part(0, 0, [5] * (CONTEXT + 1), rows=False))
        whole = encoder.hidden_states(part(0, 0, [5] * CONTEXT, rows=False))
        assert whole.shape == (CONTEXT, WIDTH)


@pytest.mark.parametrize("changes", [{"batch_size": 16}, {"micro_batch_size": 8}])
def test_encoders_take_a_whole_context_at_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    bert(tmp_path / "bert.gguf")
    with running(path=str(tmp_path / "bert.gguf"), **changes) as runner:
        assert runner.info.max_batch >= CONTEXT
        runner.hidden_states(part(0, 0, [5] * CONTEXT, rows=False))


@pytest.mark.parametrize(
    ("declared", "pooling"), [(0, "mean"), (1, "mean"), (2, "cls"), (3, "last")]
)
def test_pooling_is_the_models(tmp_path: Path, declared: int, pooling: str) -> None:
    bert(tmp_path / "bert.gguf", pooling_type=declared)
    with running(path=str(tmp_path / "bert.gguf")) as runner:
        assert runner.info.pooling == pooling


def test_rerankers_are_refused_or_only_generate(tmp_path: Path) -> None:
    bert(tmp_path / "bert.gguf", pooling_type=4)
    with (
        pytest.raises(ModelLoadFailed, match="reranker"),
        running(path=str(tmp_path / "bert.gguf")),
    ):
        pass
    gemma2(tmp_path / "gemma2.gguf", pooling_type=4)
    with running(path=str(tmp_path / "gemma2.gguf")) as runner:
        assert runner.info.embedding_size == 0
        with pytest.raises(InternalError, match="no hidden states"):
            runner.hidden_states(part(0, 0, [5], rows=False))


def test_a_decoder_that_looks_both_ways(tmp_path: Path) -> None:
    """Such models have a KV cache, and yet each text is computed whole and then forgotten."""
    gemma2(tmp_path / "both.gguf", **{"attention.causal": False, "attention.sliding_window": 4096})
    with running(path=str(tmp_path / "both.gguf")) as runner:
        assert not runner.info.causal
        together = states(runner, *TEXTS[:3])
        for text, found in zip(TEXTS, together, strict=False):
            (alone,) = states(runner, text)
            np.testing.assert_allclose(alone, found, atol=0.02)
        (changed,) = states(runner, [*TEXTS[2][:-1], 4])
        assert np.abs(changed[0] - together[2][0]).max() > 0.001  # The first sees the last.


def encoded(w: Weights, tokens: list[int]) -> Array:
    """BERT in numpy: states (tokens, WIDTH) after the last layer."""

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        result: Array = (x - mean) / np.sqrt(variance + EPSILON)
        return result * w[f"{name}.weight"] + w[f"{name}.bias"]

    count = len(tokens)
    x = w["token_embd.weight"][tokens] + w["position_embd.weight"][:count]
    x = norm(x + w["token_types.weight"][0], "token_embd_norm")
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        q, k, v = (
            linear(x, f"{name}.attn_{part}").reshape(count, HEADS, -1).swapaxes(0, 1)
            for part in "qkv"
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(WIDTH / HEADS)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).swapaxes(0, 1).reshape(count, WIDTH)
        x = norm(x + linear(mixed, f"{name}.attn_output"), f"{name}.attn_output_norm")
        up = linear(x, f"{name}.ffn_up")
        # GELU as llama.cpp has it: the approximation by tanh (Hendrycks and Gimpel 2016).
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = norm(x + linear(up, f"{name}.ffn_down"), f"{name}.layer_output_norm")
    return x.astype(np.float32)
