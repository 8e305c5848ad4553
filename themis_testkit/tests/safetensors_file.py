"""Writing safetensors files and small models, for tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def write_safetensors(
    file: Path, tensors: dict[str, npt.NDArray[Any]], dtypes: dict[str, str] | None = None
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        dtype = (dtypes or {}).get(name, {2: "F16", 4: "F32"}[tensor.itemsize])
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def random_llama(directory: Path, **changes: Any) -> dict[str, npt.NDArray[np.float32]]:
    """Write a model of `CONFIG` with random weights into a directory, and return the weights."""
    config = CONFIG | changes
    (directory / "config.json").write_text(json.dumps(config))
    hidden, inner, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    queries = config["num_attention_heads"] * config["head_dim"]
    pairs = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocab, hidden)}
    shapes["model.norm"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm": (hidden,),
            f"{prefix}.post_attention_layernorm": (hidden,),
            f"{prefix}.self_attn.q_proj": (queries, hidden),
            f"{prefix}.self_attn.k_proj": (pairs, hidden),
            f"{prefix}.self_attn.v_proj": (pairs, hidden),
            f"{prefix}.self_attn.o_proj": (hidden, queries),
            f"{prefix}.mlp.gate_proj": (inner, hidden),
            f"{prefix}.mlp.up_proj": (inner, hidden),
            f"{prefix}.mlp.down_proj": (hidden, inner),
        }
    random = np.random.default_rng(7)
    weights = {
        f"{name}.weight": random.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    write_safetensors(directory / "model.safetensors", weights)
    return weights
