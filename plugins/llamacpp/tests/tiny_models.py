"""Very small models with random weights, of kinds that the bundled model is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

WIDTH, LAYERS, VOCABULARY, CONTEXT = 32, 2, 259, 512
HEADS, INNER = 4, 48
WINDOW = 16
EPSILON = 1e-6

Array = npt.NDArray[np.float32]
Weights = dict[str, Array]


def bert(path: Path, **values: Any) -> Weights:
    """An encoder, as in Devlin et al. 2019: with biases, and its norms behind the layers."""
    random = _random(1)
    weights: Weights = {
        "token_embd.weight": random(VOCABULARY, WIDTH) * 4,
        "token_types.weight": random(2, WIDTH),
        "position_embd.weight": random(CONTEXT, WIDTH),
    }
    norms = ["token_embd_norm"]
    for layer in range(LAYERS):
        for name, shape in _ATTENTION.items():
            weights[f"blk.{layer}.{name}.weight"] = random(*shape) * 2
            weights[f"blk.{layer}.{name}.bias"] = random(shape[0])
        norms += [f"blk.{layer}.attn_output_norm", f"blk.{layer}.layer_output_norm"]
    for name in norms:
        weights[f"{name}.weight"] = 1 + random(WIDTH)
        weights[f"{name}.bias"] = random(WIDTH)
    facts = {"attention.layer_norm_epsilon": EPSILON, "attention.causal": False, "pooling_type": 1}
    return _write(path, "bert", weights, _HEADS | facts | values)


def gemma2(path: Path, **values: Any) -> Weights:
    """A decoder whose every second layer sees only the last `WINDOW` tokens."""
    random = _random(2)
    weights: Weights = {"token_embd.weight": random(VOCABULARY, WIDTH) * 4}
    norms = ["output_norm"]
    for layer in range(LAYERS):
        for name, shape in (_ATTENTION | {"ffn_gate": (INNER, WIDTH)}).items():
            weights[f"blk.{layer}.{name}.weight"] = random(*shape) * 2
        names = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        norms += [f"blk.{layer}.{name}" for name in names]
    weights |= {f"{name}.weight": 1 + random(WIDTH) for name in norms}
    facts = {
        "attention.head_count_kv": HEADS,
        "attention.key_length": WIDTH // HEADS,
        "attention.value_length": WIDTH // HEADS,
        "attention.sliding_window": WINDOW,
        "attention.layer_norm_rms_epsilon": EPSILON,
    }
    return _write(path, "gemma2", weights, _HEADS | facts | values)


def mamba(path: Path) -> Weights:
    """A recurrent model (Gu and Dao 2023)."""
    random, inner, state, rank, kernel = _random(3), 2 * WIDTH, 4, 4, 4
    weights: Weights = {
        "token_embd.weight": random(VOCABULARY, WIDTH) * 4,
        "output_norm.weight": 1 + random(WIDTH),
    }
    for layer in range(LAYERS):
        mine = {
            "attn_norm.weight": 1 + random(WIDTH),
            "ssm_in.weight": random(2 * inner, WIDTH),
            "ssm_conv1d.weight": random(inner, kernel),
            "ssm_conv1d.bias": random(inner),
            "ssm_x.weight": random(rank + 2 * state, inner),
            "ssm_dt.weight": random(inner, rank),
            "ssm_dt.bias": random(inner),
            "ssm_a": -np.abs(random(inner, state)) - np.float32(0.1),
            "ssm_d": 1 + random(inner),
            "ssm_out.weight": random(WIDTH, inner),
        }
        weights |= {f"blk.{layer}.{name}": weight for name, weight in mine.items()}
    facts = {
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
        "attention.layer_norm_rms_epsilon": EPSILON,
    }
    return _write(path, "mamba", weights, facts)


_HEADS: dict[str, Any] = {"attention.head_count": HEADS, "feed_forward_length": INNER}
_ATTENTION = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH, WIDTH),
    "attn_v": (WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}


def _random(seed: int) -> Callable[..., Array]:
    """Weights of shape (…, input) that keep the size of what passes through them."""
    generator = np.random.default_rng(seed)

    def make(*shape: int) -> Array:
        return generator.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)

    return make


def _write(path: Path, name: str, weights: Weights, values: dict[str, Any]) -> Weights:
    writer = gguf.GGUFWriter(path, name)
    writer.add_type(gguf.GGUFType.MODEL)
    ends = values.pop("add_eos", False)
    common = {"context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS}
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in (common | values).items():
        adders[type(value)](f"{name}.{key}", value)
    _add_vocabulary(writer)
    writer.add_add_eos_token(ends)
    for key, weight in weights.items():
        writer.add_tensor(key, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """One byte, one token; ids 0 to 2 are control tokens."""
    kinds = [gguf.TokenType.NORMAL] * VOCABULARY
    kinds[:3] = [gguf.TokenType.CONTROL] * 3
    # GPT-2 writes bytes as characters that can be printed (Radford et al. 2019, `encoder.py`).
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = {byte: 0x100 + i for i, byte in enumerate(sorted(set(range(256)) - printable))}
    texts = ["<pad>", "<start>", "<end>", *(chr(others.get(byte, byte)) for byte in range(256))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Q Z"])  # There must be one; this one leads to no token.
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_token_type_count(2)
