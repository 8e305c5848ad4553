"""Reading all tensors of a safetensors file as float32.

The format (https://github.com/huggingface/safetensors#format): the header's length in 8 bytes,
little-endian; the header, JSON that names type, shape and place of each tensor; the numbers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from themis_core.errors import ModelFileInvalid

Matrix = npt.NDArray[np.float32]

_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


def read(file: Path) -> dict[str, Matrix]:
    """The tensors by name. Raises `ModelFileInvalid`, naming the cause."""
    try:
        data = file.read_bytes()
    except OSError as error:
        _refuse(file, f"it cannot be read: {error}", error)
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= len(data) - 8:
        _refuse(file, "it is truncated, or no safetensors file")
    try:
        header: Any = json.loads(data[8 : 8 + size])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _tensor(entry, data[8 + size :]) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _refuse(file, f"its header and its numbers do not fit together: {error}", error)


def _tensor(entry: Any, numbers: bytes) -> Matrix:
    kind, shape = entry["dtype"], entry["shape"]
    begin, end = entry["data_offsets"]
    if kind not in _WIDTH:
        raise ValueError(f"it has a tensor of type {kind}")
    if not 0 <= begin <= end <= len(numbers):
        raise ValueError(f"a tensor ends at byte {end} of {len(numbers)}")
    if any(n < 0 for n in shape) or math.prod(shape) * _WIDTH[kind] != end - begin:
        raise ValueError(f"a tensor of shape {shape} has {end - begin} bytes")
    part = numbers[begin:end]
    if kind == "BF16":  # The upper half of float32.
        values = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(part, "<f4" if kind == "F32" else "<f2").astype(np.float32)
    return values.reshape(shape)


def _refuse(file: Path, why: str, cause: Exception | None = None) -> NoReturn:
    raise ModelFileInvalid(
        f"{file} cannot be used: {why}.",
        field="path",
        remedy="Download or save it again.",
        plugin="onnx",
    ) from cause
