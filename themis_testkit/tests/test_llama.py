"""The numpy Llama against a second one that shares nothing with it: plain loops, no cache."""

from __future__ import annotations

import cmath
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from themis_core.errors import ModelFileInvalid
from themis_testkit.reference.llama import NumpyLlama, attention

from .safetensors_file import CONFIG, random_llama

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
Vector = list[float]


def norm(x: Vector, weight: Any) -> Vector:
    scale = math.sqrt(sum(v * v for v in x) / len(x) + CONFIG["rms_norm_eps"])
    return [v / scale * float(w) for v, w in zip(x, weight, strict=True)]


def linear(x: Vector, weight: Any) -> Vector:
    return [sum(float(w) * v for w, v in zip(row, x, strict=True)) for row in weight]


def rotated(x: Vector, position: int) -> list[complex]:
    """Rotary embedding as a multiplication of complex numbers."""
    half = len(x) // 2
    theta = CONFIG["rope_parameters"]["rope_theta"]
    return [
        complex(x[i], x[i + half]) * cmath.exp(1j * position * theta ** (-i / half))
        for i in range(half)
    ]


def attend(queries: list[Vector], keys: list[Vector], values: list[Vector]) -> Vector:
    """The heads of the last position over all positions, each list (position, heads·D)."""
    size, group = CONFIG["head_dim"], 2
    last = len(keys) - 1
    mixed: Vector = []
    for head in range(CONFIG["num_attention_heads"]):
        mine = slice(head * size, (head + 1) * size)
        shared = slice(head // group * size, (head // group + 1) * size)
        query = rotated(queries[last][mine], last)
        scores = []
        for position, key in enumerate(keys):
            pairs = zip(query, rotated(key[shared], position), strict=True)
            scores.append(sum((q * k.conjugate()).real for q, k in pairs) / math.sqrt(size))
        total = sum(map(math.exp, scores))
        weights = [math.exp(score) / total for score in scores]
        mixed += [
            sum(w * v[shared][i] for w, v in zip(weights, values, strict=True)) for i in range(size)
        ]
    return mixed


def loops(weights: dict[str, Any], tokens: list[int]) -> Vector:
    """Logits after the last token."""
    hidden = [[float(v) for v in weights["model.embed_tokens.weight"][t]] for t in tokens]
    for layer in range(CONFIG["num_hidden_layers"]):
        w = {
            name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight"): value
            for name, value in weights.items()
        }
        normed = [norm(x, w["input_layernorm"]) for x in hidden]
        q, k, v = (
            [linear(x, w[f"self_attn.{name}_proj"]) for x in normed] for name in ("q", "k", "v")
        )
        for i in range(len(tokens)):
            mixed = attend(q[: i + 1], k[: i + 1], v[: i + 1])
            mixed = linear(mixed, w["self_attn.o_proj"])
            hidden[i] = [a + b for a, b in zip(hidden[i], mixed, strict=True)]
            normed_i = norm(hidden[i], w["post_attention_layernorm"])
            gate = linear(normed_i, w["mlp.gate_proj"])
            up = linear(normed_i, w["mlp.up_proj"])
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
            down = linear(inner, w["mlp.down_proj"])
            hidden[i] = [a + b for a, b in zip(hidden[i], down, strict=True)]
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return linear(norm(hidden[-1], weights["model.norm.weight"]), head)


@pytest.mark.parametrize("tied", [False, True])
def test_it_equals_plain_loops(tmp_path: Path, tied: bool) -> None:
    weights = random_llama(tmp_path, tie_word_embeddings=tied)
    llama = NumpyLlama(tmp_path)
    hidden, cache = llama.forward(TOKENS, llama.empty_cache())
    expected = [loops(weights, TOKENS[: i + 1]) for i in range(len(TOKENS))]
    np.testing.assert_allclose(llama.logits(hidden), expected, rtol=1e-3, atol=1e-4)
    assert len(cache) == len(TOKENS)


@pytest.mark.parametrize("cut", range(1, len(TOKENS)))
def test_with_a_cache_equals_without(tmp_path: Path, cut: int) -> None:
    random_llama(tmp_path)
    llama = NumpyLlama(tmp_path)
    whole, _ = llama.forward(TOKENS, llama.empty_cache())
    first, cache = llama.forward(TOKENS[:cut], llama.empty_cache())
    rest, cache = llama.forward(TOKENS[cut:], cache)
    np.testing.assert_allclose(np.concatenate([first, rest]), whole, rtol=1e-4, atol=1e-5)
    again, _ = llama.forward(TOKENS[cut:], cache.first(cut))
    np.testing.assert_array_equal(again, rest)


def test_attention_weights_are_a_mean() -> None:
    ones = np.ones((5, 2, 4), np.float32)
    query = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(attention(query, ones, ones), np.ones((3, 16)), rtol=1e-6)


def test_rope_theta_at_the_top_level(tmp_path: Path) -> None:
    random_llama(tmp_path)
    here = NumpyLlama(tmp_path)
    random_llama(tmp_path, rope_parameters=None, rope_theta=100.0)
    there = NumpyLlama(tmp_path)
    assert here.config == there.config
    assert here.parameters == there.parameters


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architecture"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_attention_heads": 3}, "heads"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    random_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelFileInvalid, match=why):
        NumpyLlama(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    random_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1}))
    with pytest.raises(ModelFileInvalid, match=r"model\.layers\.1"):
        NumpyLlama(tmp_path)


def test_broken_configurations_are_refused(tmp_path: Path) -> None:
    for content in ("", "[]", "{}"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelFileInvalid, match=r"config\.json"):
            NumpyLlama(tmp_path)
