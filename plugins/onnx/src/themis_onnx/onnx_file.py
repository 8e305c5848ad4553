"""What an .onnx file says about itself, read and checked before ONNX Runtime sees it.

The format is the `ModelProto` message of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
Weights are never read: only their names, shapes, and where they lie.
"""

from __future__ import annotations

import difflib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from themis_core.errors import ModelFileInvalid
from themis_onnx.protobuf import Field, Malformed, fields, numbers, text

# Field numbers of the messages.
MODEL_GRAPH, MODEL_OPSET = 7, 8
GRAPH_NODE, GRAPH_WEIGHT, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7

FLOAT, FLOAT16, BFLOAT16 = 1, 10, 16  # TensorProto.DataType
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64}
BITS |= {14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}
_EXTERNAL = 1  # TensorProto.DataLocation
_MAGIC = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
    b"GGUF": "a GGUF file, which is for the backend llamacpp",
    b"PK\x03\x04": "a zip archive",
    b"{": "a JSON text",
}
_REMEDY = "Download or export the model again, with all its files."


@dataclass(frozen=True, slots=True)
class Place:
    """Where the numbers of a weight lie in another file, in bytes."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A stored tensor; `place` is None if its numbers are in the .onnx file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    place: Place | None


@dataclass(frozen=True, slots=True)
class Node:
    """An operation. `span` is where its message lies in the file."""

    op: str
    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int]  # Of whole numbers only.
    span: tuple[int, int]


@dataclass(slots=True)
class OnnxFile:
    """An .onnx file. `graph` is where the graph's message lies."""

    path: Path
    graph: Field
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def ops(self) -> set[str]:
        """The kinds of operations in it."""
        return {node.op for node in self.nodes}

    @property
    def files(self) -> list[Path]:
        """The file, and those that its weights lie in."""
        others = {w.place.location for w in self.weights.values() if w.place is not None}
        return [self.path, *(self.path.parent / name for name in sorted(others))]


def read(path: Path) -> OnnxFile:
    """Read and check a file and those beside it. Raises `ModelFileInvalid` with the true cause."""
    size = _size(path)
    try:
        with path.open("rb") as stream:
            for magic, what in _MAGIC.items():
                stream.seek(0)
                if stream.read(len(magic)) == magic:
                    raise _invalid(path, f"it is {what}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                data = memoryview(mapped)
                try:
                    found = _parse(path, data)
                finally:
                    data.release()
    except Malformed as error:
        if error.cut:
            raise _invalid(path, f"it is truncated at {size} bytes: {error}") from error
        raise _invalid(path, f"it is no ONNX file: {error}") from error
    except OSError as error:
        raise _invalid(path, f"it cannot be read: {error}") from error
    _check_places(found)
    return found


def _size(path: Path) -> int:
    if path.is_dir():
        raise _invalid(path, "it is a directory")
    if not path.exists():
        others = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, others, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise _invalid(path, f"there is no such file.{hint}".rstrip("."))
    size = path.stat().st_size
    if size == 0:
        raise _invalid(path, "the file is empty")
    return size


def _parse(path: Path, data: memoryview) -> OnnxFile:
    graphs = [f for f in fields(data) if f.number == MODEL_GRAPH]
    if len(graphs) != 1:
        raise Malformed("it has no graph")
    found = OnnxFile(path, graphs[0])
    for item in fields(data, graphs[0].start, graphs[0].end):
        if item.number == GRAPH_NODE:
            found.nodes.append(_node(data, item))
        elif item.number == GRAPH_WEIGHT:
            weight = _weight(data, item)
            found.weights[weight.name] = weight
        elif item.number in (GRAPH_INPUT, GRAPH_OUTPUT):
            names = found.inputs if item.number == GRAPH_INPUT else found.outputs
            names += [text(data, f) for f in fields(data, item.start, item.end) if f.number == 1]
    if not found.nodes or not found.outputs:
        raise Malformed("its graph is empty")
    return found


def _node(data: memoryview, item: Field) -> Node:
    inputs, outputs, attributes = [], [], {}
    words = {NODE_NAME: "", NODE_OP: "", NODE_DOMAIN: ""}
    for part in fields(data, item.start, item.end):
        if part.number == NODE_INPUT:
            inputs.append(text(data, part))
        elif part.number == NODE_OUTPUT:
            outputs.append(text(data, part))
        elif part.number in words:
            words[part.number] = text(data, part)
        elif part.number == NODE_ATTRIBUTE:
            name, value = "", None
            for detail in fields(data, part.start, part.end):
                if detail.number == 1:
                    name = text(data, detail)
                elif detail.number == 3:  # AttributeProto.i
                    value = detail.value
            if value is not None:
                attributes[name] = value
    return Node(
        op=words[NODE_OP],
        name=words[NODE_NAME],
        domain=words[NODE_DOMAIN],
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        attributes=attributes,
        span=(item.key, item.end),
    )


def _weight(data: memoryview, item: Field) -> Weight:
    name, kind, shape, external = "", 0, [], False
    details: dict[str, str] = {}
    for part in fields(data, item.start, item.end):
        if part.number == 1:
            # Without packing, each dimension is a field of its own.
            packed = part.end > part.start and data[part.key] & 7 == 2
            shape += numbers(data, part) if packed else [part.value]
        elif part.number == 2:
            kind = part.value
        elif part.number == 8:
            name = text(data, part)
        elif part.number == 13:
            pair = {f.number: text(data, f) for f in fields(data, part.start, part.end)}
            details[pair.get(1, "")] = pair.get(2, "")
        elif part.number == 14:
            external = part.value == _EXTERNAL
    place = _place(name, kind, shape, details) if external else None
    return Weight(name, kind, tuple(shape), place)


def _place(name: str, kind: int, shape: Sequence[int], details: dict[str, str]) -> Place:
    location = details.get("location", "")
    try:
        offset = int(details.get("offset") or 0)
        length = int(details.get("length") or -(-math.prod(shape) * BITS.get(kind, 0) // 8))
    except ValueError as error:
        raise Malformed(f"weight {name!r} lies at no number: {error}") from error
    where = PurePosixPath(location)
    if not location or where.is_absolute() or ".." in where.parts or offset < 0 or length < 0:
        raise Malformed(f"weight {name!r} lies outside the directory, at {location!r}")
    return Place(location, offset, length)


def _check_places(found: OnnxFile) -> None:
    """Every weight that lies in another file is really there."""
    sizes: dict[str, int] = {}
    for weight in found.weights.values():
        place = weight.place
        if place is None:
            continue
        file = found.path.parent / place.location
        if place.location not in sizes:
            if not file.is_file():
                raise ModelFileInvalid(
                    f"{file} is missing: weights of {found.path.name} lie in it.",
                    field="path",
                    remedy=_REMEDY,
                    plugin="onnx",
                )
            sizes[place.location] = file.stat().st_size
        end = place.offset + place.length
        if end > sizes[place.location]:
            raise _invalid(
                file,
                f"it is truncated, or belongs to another model: weight {weight.name!r} of "
                f"{found.path.name} ends at byte {end} of {sizes[place.location]}",
            )
        needed = -(-math.prod(weight.shape) * BITS.get(weight.kind, 0) // 8)
        if place.length < needed:
            raise _invalid(
                found.path,
                f"weight {weight.name!r} of shape {list(weight.shape)} has {place.length} bytes",
            )


def _invalid(path: Path, why: str) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"{path} cannot be used: {why}.", field="path", remedy=_REMEDY, plugin="onnx"
    )
