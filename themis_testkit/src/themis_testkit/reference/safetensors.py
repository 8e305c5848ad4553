"""Reading a safetensors file: 8 bytes of header length (little-endian), JSON, then the numbers.

The format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from themis_core.errors import ModelFileInvalid

Array = npt.NDArray[np.float32]

_MAX_HEADER = 100_000_000  # bytes; the bound that the format itself sets
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
_REMEDY = "Download or convert the file again."


class _Entry(msgspec.Struct, frozen=True):
    """Where a tensor lies: `data_offsets` are [begin, end) in bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_safetensors(file: Path) -> dict[str, Array]:
    """All tensors of a file as float32, by name. No more is read than the file holds.

    Raises `ModelFileInvalid` if the file is missing, truncated or damaged, or has a tensor of a
    type other than F32, F16 and BF16.
    """
    try:
        with file.open("rb") as stream:
            entries = _read_header(file, stream)
            start, size = stream.tell(), file.stat().st_size
            tensors = {}
            for name, entry in entries.items():
                begin, end = _check(file, name, entry, size - start)
                stream.seek(start + begin)
                tensors[name] = _decode(stream.read(end - begin), entry)
            return tensors
    except OSError as error:
        raise ModelFileInvalid(f"{file} cannot be read: {error}.", remedy=_REMEDY) from error


def _read_header(file: Path, stream: BinaryIO) -> dict[str, _Entry]:
    prefix = stream.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= _MAX_HEADER:
        raise ModelFileInvalid(f"{file} is no safetensors file.", remedy=_REMEDY)
    text = stream.read(length)
    if len(text) < length:
        raise ModelFileInvalid(f"{file} is truncated: its header is incomplete.", remedy=_REMEDY)
    try:
        header: Any = json.loads(text)
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        return msgspec.convert(header, dict[str, _Entry])
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        message = f"{file} has a damaged header: {error}."
        raise ModelFileInvalid(message, remedy=_REMEDY) from error


def _check(file: Path, name: str, entry: _Entry, available: int) -> tuple[int, int]:
    """The tensor's place, once it is sure that it lies in the file and fits the shape."""
    width = _WIDTHS.get(entry.dtype)
    if width is None:
        raise ModelFileInvalid(
            f"{file}: tensor {name!r} has type {entry.dtype}, which is not one of "
            f"{', '.join(_WIDTHS)}.",
            remedy="Use weights that are not quantised.",
        )
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= available:
        raise ModelFileInvalid(
            f"{file} is truncated: tensor {name!r} ends at byte {end} of {available}.",
            remedy=_REMEDY,
        )
    if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * width != end - begin:
        message = f"{file}: tensor {name!r} of shape {entry.shape} has {end - begin} bytes."
        raise ModelFileInvalid(message, remedy=_REMEDY)
    return begin, end


def _decode(data: bytes, entry: _Entry) -> Array:
    if entry.dtype == "BF16":
        # bfloat16 is the upper half of float32.
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(data, "<f4" if entry.dtype == "F32" else "<f2")
    return values.astype(np.float32).reshape(entry.shape)
