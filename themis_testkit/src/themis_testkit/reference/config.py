"""`config.json` of a Llama: the facts that the computation needs, and a refusal of all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from themis_core.errors import ModelFileInvalid


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a Hugging Face `config.json`, by their own names. Lengths in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; each serves the same number of query heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Numbers per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


# Keys that change the computation, and the values under which it is the plain one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "pretraining_tp": (1,),
}


def read_config(file: Path) -> LlamaConfig:
    """The configuration in a file.

    Raises `ModelFileInvalid` if it is missing, damaged, or of a model that this plain
    implementation would compute wrongly.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileInvalid(f"{file} cannot be read: {error}.") from error
    if not isinstance(raw, dict) or raw.get("architectures") != ["LlamaForCausalLM"]:
        raise _refusal(file, "its architecture is not LlamaForCausalLM")
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise _refusal(file, f"it has rope_type {rope['rope_type']!r}")
    for key, plain in _PLAIN.items():
        if key in raw and raw[key] not in plain:
            raise _refusal(file, f"it has {key} = {raw[key]!r}")
    raw.setdefault("rope_theta", rope.get("rope_theta", 10_000.0))
    try:
        config = msgspec.convert(raw, LlamaConfig)
    except msgspec.ValidationError as error:
        raise ModelFileInvalid(f"{file} is no usable configuration: {error}.") from error
    if config.num_attention_heads % config.kv_heads or config.head_size % 2:
        raise _refusal(file, "its heads do not divide evenly")
    return config


def _refusal(file: Path, why: str) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"The reference backend cannot run the model of {file}: {why}.",
        remedy="Use a plain Llama, or another backend.",
    )
