"""LoRA adapters in PEFT's format, looked at before the engine does: a broken one could end it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from themis_core.errors import ModelFileInvalid

_LARGEST_HEADER = 64 << 20


def check_adapter(path: str, most: int) -> None:
    """Raises `ModelFileInvalid` for what is no adapter, or of a rank above `most`."""
    folder = Path(path)
    config = _config(folder / "adapter_config.json", path)
    if config.get("peft_type") != "LORA":
        raise _invalid(path, f"its peft_type is {config.get('peft_type')!r}, not LORA")
    rank = config.get("r")
    if not isinstance(rank, int) or not 0 < rank <= most:
        raise _invalid(path, f"its rank is {rank}, and max_adapter_rank is {most}")
    _check_tensors(folder / "adapter_model.safetensors", path)


def _config(file: Path, path: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _invalid(path, f"{file.name} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise _invalid(path, f"{file.name} holds no JSON object")
    return config


def _check_tensors(file: Path, path: str) -> None:
    """The header's tensors must fill the file exactly (format: safetensors, README)."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(opened.read(length))
            size = file.stat().st_size - 8 - length
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        if not ends or max(ends) != size:
            raise ValueError("it is truncated")
    except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError) as error:
        raise _invalid(path, f"{file.name} cannot be read ({error})") from error


def _invalid(path: str, why: str) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"The adapter {path!r} cannot be used: {why}.",
        field="path",
        remedy="Give the directory of a LoRA adapter in PEFT's format.",
        plugin="vllm_engine",
    )
