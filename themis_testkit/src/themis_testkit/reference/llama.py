"""Llama (Touvron et al. 2023) in numpy: float32, one sequence at a time, written to be read.

Names of dimensions: T new tokens, P past tokens, H query heads, K key/value heads, D numbers per
head. Weights are stored as Hugging Face stores them, (output, input), hence the transpositions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from themis_core.errors import ModelFileInvalid
from themis_testkit.reference.config import LlamaConfig, read_config
from themis_testkit.reference.lora import Lora
from themis_testkit.reference.safetensors import Array, read_safetensors


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys (after rotation) and values of one sequence: for each layer, arrays (P, K, D).

    Nothing is ever written into the arrays, so caches may share them.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.keys[0])

    def first(self, length: int) -> KVCache:
        """The cache of the first `length` tokens."""
        return KVCache(tuple(k[:length] for k in self.keys), tuple(v[:length] for v in self.values))


class NumpyLlama:
    """The model of a Hugging Face directory. Raises `ModelFileInvalid` if it cannot be run."""

    def __init__(self, directory: Path) -> None:
        self.config = read_config(directory / "config.json")
        file = directory / "model.safetensors"
        self._weights = read_safetensors(file)
        _check_shapes(file, self.config, self._weights)

    def adapter(self, directory: Path) -> Lora:
        """An adapter for this model. Raises `ModelFileInvalid` if it cannot be used."""
        return Lora(directory, self._weights)

    def adapted(self, loras: Mapping[Lora, float]) -> NumpyLlama:
        """The same model with adapters, each with its weight; it shares what they leave alone."""
        other = copy.copy(self)
        other._weights = dict(self._weights)
        for lora, weight in loras.items():
            for name in lora.names:
                delta = lora.delta(name)
                other._weights[name] = other._weights[name] + np.float32(weight) * delta
        return other

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(weight.size for weight in self._weights.values())

    def empty_cache(self) -> KVCache:
        """The cache of a sequence without tokens."""
        empty = np.zeros((0, self.config.kv_heads, self.config.head_size), np.float32)
        return KVCache(*((empty,) * self.config.num_hidden_layers,) * 2)

    def forward(self, tokens: list[int], past: KVCache) -> tuple[Array, KVCache]:
        """Hidden states (T, hidden_size) of tokens that follow `past`, and the longer cache."""
        hidden = self._weights["model.embed_tokens.weight"][tokens]
        positions = np.arange(len(past), len(past) + len(tokens))
        rotation = rope(positions, self.config.head_size, self.config.rope_theta)
        keys, values = [], []
        for layer in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            normed = self._norm(hidden, f"{prefix}.input_layernorm")
            query = rotate(self._heads(normed, f"{prefix}.self_attn.q_proj"), *rotation)
            key = rotate(self._heads(normed, f"{prefix}.self_attn.k_proj"), *rotation)
            value = self._heads(normed, f"{prefix}.self_attn.v_proj")
            keys.append(np.concatenate([past.keys[layer], key]))
            values.append(np.concatenate([past.values[layer], value]))
            mixed = attention(query, keys[-1], values[-1])
            hidden = hidden + self._linear(mixed, f"{prefix}.self_attn.o_proj")
            normed = self._norm(hidden, f"{prefix}.post_attention_layernorm")
            hidden = hidden + self._mlp(normed, f"{prefix}.mlp")
        return hidden, KVCache(tuple(keys), tuple(values))

    def final(self, hidden: Array) -> Array:
        """Hidden states after the last norm, of the same shape."""
        return self._norm(hidden, "model.norm")

    def logits(self, hidden: Array) -> Array:
        """Next-token logits (rows, vocabulary) of hidden states (rows, hidden_size)."""
        tied = self.config.tie_word_embeddings
        head = self._weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        return product(self.final(hidden), head)

    def _linear(self, x: Array, name: str) -> Array:
        return product(x, self._weights[f"{name}.weight"])

    def _heads(self, x: Array, name: str) -> Array:
        """(T, heads, D)."""
        return self._linear(x, name).reshape(len(x), -1, self.config.head_size)

    def _norm(self, x: Array, name: str) -> Array:
        """RMSNorm (Zhang and Sennrich 2019)."""
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        scale = 1.0 / np.sqrt(mean_square + np.float32(self.config.rms_norm_eps))
        result: Array = x * scale * self._weights[f"{name}.weight"]
        return result

    def _mlp(self, x: Array, name: str) -> Array:
        """SwiGLU (Shazeer 2020)."""
        gate = self._linear(x, f"{name}.gate_proj")
        return self._linear(silu(gate) * self._linear(x, f"{name}.up_proj"), f"{name}.down_proj")


def product(x: Array, weight: Array) -> Array:
    """(T, input) times a stored weight (output, input): (T, output).

    By einsum, not BLAS: so the last bits depend neither on T nor on a number of threads.
    """
    result: Array = np.einsum("ti,oi->to", x, weight)
    return result


def silu(x: Array) -> Array:
    """x · sigmoid(x), in the form whose exponential cannot overflow."""
    result: Array = x * np.float32(0.5) * (1 + np.tanh(x * np.float32(0.5)))
    return result


def rope(positions: np.typing.NDArray[np.int_], size: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines (T, 1, D/2) of rotary embeddings (Su et al. 2021)."""
    frequencies = theta ** (-np.arange(0, size, 2) / size)
    angles = (positions[:, None] * frequencies)[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
    """Rotate (T, heads, D). Number i is paired with number i + D/2, as Hugging Face pairs them."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def attention(query: Array, keys: Array, values: Array) -> Array:
    """Causal grouped-query attention (Ainslie et al. 2023) of the last T of P+T tokens.

    Takes (T, H, D), (P+T, K, D) and (P+T, K, D); gives (T, H·D).
    """
    count, heads, size = query.shape
    group = heads // keys.shape[1]
    grouped = query.reshape(count, -1, group, size)
    scores = np.einsum("tkgd,pkd->kgtp", grouped, keys) / np.float32(np.sqrt(size))
    past = len(keys) - count
    future = np.arange(len(keys)) > past + np.arange(count)[:, None]
    scores = np.where(future, np.float32(-np.inf), scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: Array = np.einsum("kgtp,pkd->tkgd", weights, values)
    return mixed.reshape(count, heads * size)


def _check_shapes(file: Path, config: LlamaConfig, weights: dict[str, Array]) -> None:
    """Every tensor that the computation uses is there, in its shape, and there is no other."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_size
    pairs = config.kv_heads * config.head_size
    expected: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (config.vocab_size, hidden),
        "model.norm": (hidden,),
    }
    if not config.tie_word_embeddings:
        expected["lm_head"] = (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        shapes = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (pairs, hidden),
            "self_attn.v_proj": (pairs, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        expected |= {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}
    wanted = {f"{name}.weight": shape for name, shape in expected.items()}
    found = {name: weight.shape for name, weight in weights.items()}
    if config.tie_word_embeddings:
        found.pop("lm_head.weight", None)  # A copy of the embeddings that some files carry.
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise ModelFileInvalid(
                f"{file}: tensor {name!r} has shape {found.get(name)}, but config.json "
                f"calls for {wanted.get(name)}.",
                remedy="Use the files of one and the same model, a plain Llama.",
            )
