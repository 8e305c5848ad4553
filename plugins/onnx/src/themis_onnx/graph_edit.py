"""Changing a graph when it is loaded: ONNX Runtime gets the changed one as bytes, the file stays.

Weights in other files stay there; ONNX Runtime is told the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from themis_onnx.onnx_file import (
    GRAPH_INPUT,
    GRAPH_NODE,
    GRAPH_WEIGHT,
    MODEL_GRAPH,
    NODE_INPUT,
    NODE_NAME,
    NODE_OP,
    NODE_OUTPUT,
    Node,
    OnnxFile,
)
from themis_onnx.protobuf import bytes_field, fields, number_field, text

INT64 = 7  # TensorProto.DataType


@dataclass(slots=True)
class Edit:
    """What is changed: by node, the new names of tensors, and messages to put before and behind.

    `inputs` and `weights` are added to the graph. All are messages as bytes.
    """

    names: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)
    before: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    behind: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    inputs: list[bytes] = field(default_factory=list)
    weights: list[bytes] = field(default_factory=list)

    def rename(self, node: Node, names: Mapping[str, str]) -> None:
        """Give inputs or outputs of a node other names."""
        self.names.setdefault(node.span, {}).update(names)


def edited(graph: OnnxFile, edit: Edit) -> bytes:
    """The model with the changes."""
    view = memoryview(graph.path.read_bytes())
    body = bytearray()
    for item in fields(view, graph.graph.start, graph.graph.end):
        span = (item.key, item.end)
        if item.number != GRAPH_NODE:
            body += view[item.key : item.end]
            continue
        for message in edit.before.get(span, ()):
            body += bytes_field(GRAPH_NODE, message)
        names = edit.names.get(span)
        if names is None:
            body += view[item.key : item.end]
        else:
            body += bytes_field(GRAPH_NODE, _renamed(view, item.start, item.end, names))
        for message in edit.behind.get(span, ()):
            body += bytes_field(GRAPH_NODE, message)
    for number, messages in ((GRAPH_INPUT, edit.inputs), (GRAPH_WEIGHT, edit.weights)):
        for message in messages:
            body += bytes_field(number, message)
    return b"".join(
        [
            view[: graph.graph.key],
            bytes_field(MODEL_GRAPH, bytes(body)),
            view[graph.graph.end :],
        ]
    )


def node(op: str, inputs: Iterable[str], output: str) -> bytes:
    """A `NodeProto` of a standard operation with one output, which it is named after."""
    return (
        b"".join(bytes_field(NODE_INPUT, name) for name in inputs)
        + bytes_field(NODE_OUTPUT, output)
        + bytes_field(NODE_NAME, f"{output}/{op}")
        + bytes_field(NODE_OP, op)
    )


def value(name: str, kind: int, shape: Iterable[int | str]) -> bytes:
    """A `ValueInfoProto`: an input's name, type and dimensions, some of which have names only."""
    dimensions = b"".join(
        bytes_field(1, number_field(1, n) if isinstance(n, int) else bytes_field(2, n))
        for n in shape
    )
    tensor = number_field(1, kind) + bytes_field(2, dimensions)
    return bytes_field(1, name) + bytes_field(2, bytes_field(1, tensor))


def whole_number(name: str, number: int) -> bytes:
    """A `TensorProto` of one number that is not negative."""
    data = number.to_bytes(8, "little")
    return number_field(1, 1) + number_field(2, INT64) + bytes_field(8, name) + bytes_field(9, data)


def _renamed(view: memoryview, start: int, end: int, names: Mapping[str, str]) -> bytes:
    message = bytearray()
    for part in fields(view, start, end):
        if part.number in (NODE_INPUT, NODE_OUTPUT):
            name = text(view, part)
            message += bytes_field(part.number, names.get(name, name))
        else:
            message += view[part.key : part.end]
    return bytes(message)
