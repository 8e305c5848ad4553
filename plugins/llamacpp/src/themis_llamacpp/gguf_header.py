"""Reads the header of a GGUF file before llama.cpp does, to say what is wrong with it.

Format: the GGUF specification of the ggml project, versions 2 and 3. A file is a magic number, a
version, the counts of tensors and of key-value pairs, the pairs, the tensor descriptions, and
then, aligned, the tensor data. Every length is checked against the file's size before it is
believed, so that a hostile header costs neither memory nor time.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from themis_core.errors import ModelFileInvalid
from themis_core.suggest import did_you_mean

_MAGIC = b"GGUF"
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_KEY = 65_535
_MAX_TENSORS = 1_000_000
_MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS

# ggml tensor type → (elements in a block, bytes of a block).
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

_LOOKS_LIKE = (
    (b"version https://git-lfs", "a git-lfs pointer: the real file was not downloaded"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint"),
    (b"<!DOCTYPE", "an HTML page: the download answered with a web page"),
    (b"<html", "an HTML page: the download answered with a web page"),
    (b"ggml", "a model in a format older than GGUF"),
    (b"lmgg", "a model in a format older than GGUF"),
    (b"\x08", "perhaps an ONNX model"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"{", "a JSON text"),
)


class Items(int):
    """The length of an array: not to be taken for a number that stands in the header."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's description. `start` is its place in the file, in bytes; innermost size first."""

    sizes: tuple[int, ...]
    kind: int
    start: int
    length: int


@dataclass(slots=True)
class Header:
    """What a header says. Arrays in `metadata` are represented by their length, an `Items`.

    `types` has the GGUF type of each metadata value.
    """

    version: int
    metadata: dict[str, Any] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    data_start: int = 0
    data_end: int = 0


def check(path: Path) -> Header:
    """Read and check a model's header. Raises `ModelFileInvalid` with cause and remedy."""
    header = read(path)
    metadata = header.metadata
    if metadata.get("general.type") == "adapter":
        invalid(path, "it is a LoRA adapter, not a model", "Give the base model here.")
    if "general.architecture" not in metadata:
        invalid(path, "its header names no architecture")
    if not header.tensors:
        invalid(path, "it has a vocabulary but no weights")
    _check_parts(path, metadata)
    _check_numbers(path, metadata)
    return header


def _check_numbers(path: Path, metadata: dict[str, Any]) -> None:
    """Refuse numbers at which llama.cpp ends the process instead of refusing the model."""
    prefix = metadata["general.architecture"]
    layers = metadata.get(f"{prefix}.block_count", 1)
    if not isinstance(layers, int) or not 1 <= layers <= _MAX_LAYERS:
        invalid(path, f"its header claims {layers!r} layers", "Fetch the file again.")
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        epsilon = metadata.get(f"{prefix}.attention.{name}", 0.0)
        # Written so that it refuses what is not a number, too.
        if not isinstance(epsilon, float) or not 0.0 <= epsilon < 1.0:
            invalid(path, f"its {name} is {epsilon!r}", "Fetch the file again.")


def read(path: Path) -> Header:
    """Read a header. Raises `ModelFileInvalid` for what is no whole GGUF file."""
    if not path.exists():
        near = [p.name for p in path.parent.glob("*.gguf")] if path.parent.is_dir() else []
        invalid(path, "there is no such file", did_you_mean(path.name, near))
    if path.is_dir():
        invalid(path, "it is a directory", "Give the .gguf file inside it.")
    try:
        size = path.stat().st_size
        if size == 0:
            invalid(path, "the file is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, size).header()
    except OSError as error:
        raise _error(path, f"it cannot be read: {error}") from error


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path = path
        self._data = data
        self._size = size
        self._at = 0

    def header(self) -> Header:
        self._check_magic()
        self._at = 4
        version = self._number("<I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in (1, 2, 3):
                self._invalid("it is in big-endian byte order, which this machine cannot use")
            self._invalid(f"it has GGUF version {version}; known are 2 and 3")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        # The shortest description of a tensor has 24 bytes, the shortest pair 13.
        if tensors > min(_MAX_TENSORS, self._size // 24):
            self._invalid(f"it claims {tensors} tensors, more than a file of its size can hold")
        if pairs > self._size // 13:
            self._invalid(f"it claims {pairs} key-value pairs, more than fit in the file")
        header = Header(version=version)
        for _ in range(pairs):
            key = self._string(_MAX_KEY).decode("utf-8", "replace")
            header.types[key] = kind = self._number("<I")
            header.metadata[key] = self._value(kind)
        self._read_tensors(tensors, header)
        if header.data_end > self._size:
            self._invalid(
                f"its tensors need {header.data_end:,} bytes, but the file has {self._size:,}",
                "The download was probably incomplete: fetch the file again.",
            )
        return header

    def _check_magic(self) -> None:
        start = self._data[:32]
        if start[:4] == _MAGIC:
            return
        looks = next((what for prefix, what in _LOOKS_LIKE if start.startswith(prefix)), None)
        if looks is None and start[8:10] == b'{"':
            looks = "a safetensors file"
        found = f"it looks like {looks}" if looks else f"it begins with {start[:4]!r}"
        self._invalid(f"it is no GGUF file; {found}", "Convert the model to GGUF first.")

    def _read_tensors(self, tensors: int, header: Header) -> None:
        described = []
        for _ in range(tensors):
            name = self._string(_MAX_KEY).decode("utf-8", "replace")
            dimensions = self._number("<I")
            if dimensions > _MAX_DIMENSIONS:
                self._invalid(f"tensor {name!r} claims {dimensions} dimensions")
            sizes = tuple(self._number("<Q") for _ in range(dimensions))
            described.append((name, sizes, self._number("<I"), self._number("<Q")))
        alignment = header.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._invalid(f"its alignment is {alignment!r}, which is no power of two")
        header.data_start = header.data_end = self._at
        if described:
            header.data_start = -(-self._at // alignment) * alignment
        for name, sizes, kind, offset in described:
            per_block, block = _BLOCKS.get(kind, (1, 0))  # llama.cpp judges unknown types.
            length = math.prod(sizes) // per_block * block
            tensor = Tensor(sizes, kind, header.data_start + offset, length)
            header.tensors[name] = tensor
            header.data_end = max(header.data_end, header.data_start, tensor.start + length)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string(self._size).decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._skip_array()
        return self._invalid(f"a metadata value has the unknown type {kind}")

    def _skip_array(self) -> Items:
        """Step over an array; returns its length."""
        kind = self._number("<I")
        count: int = self._number("<Q")
        if kind in _SCALARS:
            self._take(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            if count > self._size // 8:
                self._invalid(f"an array claims {count} texts, more than fit in the file")
            for _ in range(count):
                self._string(self._size)
        else:
            self._invalid(f"a metadata array has elements of the unknown type {kind}")
        return Items(count)

    def _string(self, limit: int) -> bytes:
        length = self._number("<Q")
        if length > limit:
            self._invalid(f"a text in its header claims {length} bytes")
        start = self._take(length)
        return self._data[start : start + length]

    def _number(self, form: str) -> Any:
        start = self._take(struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)[0]

    def _take(self, count: int) -> int:
        start, self._at = self._at, self._at + count
        if self._at > self._size:
            self._invalid(
                f"the file ends within its header, after {self._size:,} bytes",
                "The download was probably incomplete: fetch the file again.",
            )
        return start

    def _invalid(self, what: str, remedy: str | None = None) -> NoReturn:
        invalid(self._path, what, remedy)


def _check_parts(path: Path, metadata: dict[str, Any]) -> None:
    """A model in several files needs all of them beside the first."""
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if match is None:
        invalid(path, f"it is one of {count} parts, but its name has not the form …-00001-of-…")
    parts = [f"{match[1]}-{i:05}-of-{match[3]}.gguf" for i in range(1, count + 1)]
    absent = [name for name in parts if not (path.parent / name).exists()]
    if absent:
        invalid(path, f"it is one of {count} parts, and these are missing: {', '.join(absent)}")
    if match[2] != "00001":
        invalid(path, "it is not the first of its parts", f"Give {parts[0]} instead.")


def invalid(path: Path, what: str, remedy: str | None = None) -> NoReturn:
    """Raise `ModelFileInvalid` for a file."""
    raise _error(path, what, remedy)


def _error(path: Path, what: str, remedy: str | None = None) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"The file {path} cannot be used: {what}.",
        field="path",
        remedy=remedy,
        plugin="llamacpp",
    )
