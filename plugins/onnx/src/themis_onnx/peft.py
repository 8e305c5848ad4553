"""Reading a LoRA adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`.

The layout: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from themis_core.errors import ModelFileInvalid
from themis_onnx import safetensors
from themis_onnx.directory import read_json
from themis_onnx.safetensors import Matrix

_KEY = re.compile(r"(?P<module>.*\.layers\.(?P<layer>\d+)\..*?(?P<name>\w+))\.lora_(?P<half>[AB])")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to a projection: x A B, with A (inputs, rank) and B (rank, outputs), scaled."""

    a: Matrix
    b: Matrix


def read_adapter(folder: Path) -> dict[tuple[int, str], Delta]:
    """The changes by layer and module. Raises `ModelFileInvalid` with the true cause."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        refuse(folder, f"it {what}, and a PEFT directory is wanted")
    config = read_json(folder / _CONFIG, required=True)
    _check(folder, config)
    if not (folder / _WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        refuse(folder, f"its weights are pickled; save them as {_WEIGHTS}")
    halves: dict[tuple[int, str], dict[str, tuple[str, Matrix]]] = {}
    for key, tensor in safetensors.read(folder / _WEIGHTS).items():
        match = _KEY.fullmatch(key.removesuffix(".weight"))
        if match is None or tensor.ndim != 2:
            refuse(folder, f"it changes {key!r}, which is no projection of a layer")
        place = halves.setdefault((int(match["layer"]), match["name"]), {})
        place[match["half"]] = (match["module"], tensor)
    if not halves:
        refuse(folder, "it has no weights")
    return {place: _delta(folder, place, pair, config) for place, pair in halves.items()}


def refuse(folder: Path, why: str) -> NoReturn:
    """The adapter cannot be used."""
    raise ModelFileInvalid(
        f"{folder} cannot be used as an adapter: {why}.",
        field="path",
        remedy="Use a LoRA adapter of this model, in the directory that PEFT saved.",
        plugin="onnx",
    )


def _check(folder: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        refuse(folder, f"its peft_type is {config.get('peft_type')!r}, not 'LORA'")
    for name, plain in (
        ("use_dora", (False, None)),
        ("bias", ("none", None)),
        ("modules_to_save", (None, [])),
        ("fan_in_fan_out", (False, None)),
        ("lora_bias", (False, None)),
        ("trainable_token_indices", (None, [], {})),
        ("alora_invocation_tokens", (None, [])),
    ):
        if config.get(name) not in plain:
            refuse(folder, f"its {name} is {config[name]!r}, which is not supported")


def _delta(
    folder: Path,
    place: tuple[int, str],
    pair: dict[str, tuple[str, Matrix]],
    config: dict[str, Any],
) -> Delta:
    name = f"layer {place[0]}, {place[1]}"
    if pair.keys() != {"A", "B"}:
        refuse(folder, f"{name} has only lora_{next(iter(pair))}")
    (module, a), (_, b) = pair["A"], pair["B"]
    rank = a.shape[0]
    if b.shape[1] != rank:
        refuse(folder, f"{name} has the ranks {rank} and {b.shape[1]}")
    alpha = _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    declared = _of_module(config.get("rank_pattern"), module, config.get("r"))
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        refuse(folder, f"its lora_alpha is {alpha!r}")
    if declared != rank:
        refuse(folder, f"{name} has rank {rank}, but {_CONFIG} says {declared!r}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Delta(a.T, b.T * a.dtype.type(scale))


def _of_module(pattern: Any, module: str, otherwise: Any) -> Any:
    """PEFT's patterns: the first key that the module's name ends with, as a regular expression."""
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        if re.fullmatch(rf"(?:.*\.)?(?:{key})", module):
            return value
    return otherwise
