"""LoRA (Hu et al. 2021) from a PEFT directory: `adapter_config.json`, `adapter_model.safetensors`.

A weight W becomes W + weight · scale · B · A, with scale = alpha / rank, or alpha / √rank where
`use_rslora` says so (Kalajdzievski 2023). Several adapters add up.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from themis_core.errors import ModelFileInvalid
from themis_testkit.reference.safetensors import Array, read_safetensors

_PREFIX = "base_model.model."

# Keys that change the computation, and the values under which it is the plain one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "fan_in_fan_out": (False, None),
    "arrow_config": (None,),
    "megatron_config": (None,),
    "exclude_modules": (None, []),
}


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of an `adapter_config.json` that decide about the computation."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    peft_type: str = "LORA"

    @property
    def scale(self) -> float:
        """What B · A is multiplied with."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class Lora:
    """An adapter for a model with these weights.

    Raises `ModelFileInvalid` if a file is missing, damaged, for another model, or of a kind that
    this plain implementation would compute wrongly.
    """

    def __init__(self, directory: Path, weights: dict[str, Array]) -> None:
        self._config_file = directory / "adapter_config.json"
        self._config = self._read_config()
        file = directory / "adapter_model.safetensors"
        self._pairs = self._match(file, read_safetensors(file), weights)

    def delta(self, name: str) -> Array:
        """scale · B · A for the weight of that name, one of `names`: (output, input)."""
        a, b = self._pairs[name]
        result: Array = np.float32(self._config.scale) * np.einsum("or,ri->oi", b, a)
        return result

    @property
    def names(self) -> frozenset[str]:
        """The weights that it changes."""
        return frozenset(self._pairs)

    def _read_config(self) -> LoraConfig:
        file = self._config_file
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelFileInvalid(f"{file} cannot be read: {error}.") from error
        if not isinstance(raw, dict):
            raise ModelFileInvalid(f"{file} holds no JSON object.")
        for key, plain in _PLAIN.items():
            if key in raw and raw[key] not in plain:
                raise self._refusal(f"it has {key} = {raw[key]!r}")
        try:
            config = msgspec.convert(raw, LoraConfig)
        except msgspec.ValidationError as error:
            raise ModelFileInvalid(f"{file} is no usable configuration: {error}.") from error
        if config.r < 1:
            raise self._refusal(f"its rank is {config.r}")
        return config

    def _match(
        self, file: Path, tensors: dict[str, Array], weights: dict[str, Array]
    ) -> dict[str, tuple[Array, Array]]:
        """The pairs (A, B) by the weight that they change, once their shapes are sure."""
        parts: dict[str, dict[str, Array]] = {}
        for name, tensor in tensors.items():
            match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", name)
            if match is None:
                raise self._refusal(f"tensor {name!r} is no part of a LoRA")
            parts.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
        if not parts:
            raise self._refusal(f"{file.name} has no tensors")
        pairs = {}
        for name, found in parts.items():
            if found.keys() != {"A", "B"}:
                raise self._refusal(f"of the pair for {name!r}, one is missing")
            if name not in weights or weights[name].ndim != 2 or "embed_tokens" in name:
                raise self._refusal(f"it changes {name!r}, which is no linear layer of this model")
            outputs, inputs = weights[name].shape
            a, b = found["A"], found["B"]
            if a.shape != (self._config.r, inputs) or b.shape != (outputs, self._config.r):
                raise self._refusal(
                    f"the pair for {name!r} has shapes {a.shape} and {b.shape}, but the weight "
                    f"has {(outputs, inputs)} and the rank is {self._config.r}"
                )
            pairs[name] = (a, b)
        return pairs

    def _refusal(self, why: str) -> ModelFileInvalid:
        return ModelFileInvalid(
            f"The reference backend cannot use the adapter of {self._config_file.parent}: {why}.",
            remedy="Use a plain LoRA of this model, or another backend.",
        )
