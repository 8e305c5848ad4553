"""Giving a graph inputs for LoRA adapters (Hu et al. 2021), when it is loaded.

After each projection y = x W, the graph gets x A B added, where A and B are inputs whose rank may
be anything, 0 included. So an adapter comes and goes without another graph, and several at once are
one of a larger rank. The file is not changed: ONNX Runtime gets the changed graph as bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from themis_onnx.graph_edit import Edit, node, value
from themis_onnx.onnx_file import FLOAT, FLOAT16, Node, OnnxFile

_MODULES = "qkv_proj|q_proj|k_proj|v_proj|o_proj|gate_up_proj|gate_proj|up_proj|down_proj"
_NAME = re.compile(rf"layers[./](\d+)[./](?:self_attn|attn|mlp)[./]({_MODULES})(?![a-z_])")
_KINDS = {FLOAT, FLOAT16}


@dataclass(frozen=True, slots=True)
class Target:
    """A projection that adapters can change: x (…, inputs) to (…, outputs)."""

    layer: int
    module: str
    inputs: int
    outputs: int
    kind: int  # TensorProto.DataType of what it computes with.
    node: Node

    @property
    def a(self) -> str:
        """The graph's input (inputs, rank)."""
        return f"lora.{self.layer}.{self.module}.a"

    @property
    def b(self) -> str:
        """The graph's input (rank, outputs)."""
        return f"lora.{self.layer}.{self.module}.b"


def targets(graph: OnnxFile) -> list[Target]:
    """The projections of a graph; none if it names them otherwise or is quantised as a whole."""
    producers = {output: made for made in graph.nodes for output in made.outputs}
    found: dict[tuple[int, str], Target] = {}
    for one in graph.nodes:
        if one.op not in ("MatMul", "MatMulNBits") or len(one.inputs) < 2:
            continue
        match = _NAME.search(one.name) or _NAME.search(one.inputs[1])
        if match is None:
            continue
        if one.op == "MatMulNBits":
            scales = graph.weights.get(one.inputs[2]) if len(one.inputs) > 2 else None
            shape = (one.attributes.get("K", 0), one.attributes.get("N", 0))
            facts = None if scales is None else (scales.kind, shape)
        else:
            facts = _matrix(graph, producers, one.inputs[1])
        key = (int(match[1]), match[2])
        if facts is None or facts[0] not in _KINDS or key in found:
            continue
        found[key] = Target(*key, *facts[1], facts[0], one)
    return list(found.values())


def add_inputs(edit: Edit, changed: list[Target]) -> None:
    """Give the targets their inputs."""
    for target in changed:
        stem = target.a.removesuffix(".a")
        (y,) = target.node.outputs
        base, low, delta = f"{stem}.base", f"{stem}.low", f"{stem}.delta"
        edit.rename(target.node, {y: base})
        edit.behind[target.node.span] = [
            node("MatMul", [target.node.inputs[0], target.a], low),
            node("MatMul", [low, target.b], delta),
            node("Add", [base, delta], y),
        ]
        rank = f"{stem}.rank"
        edit.inputs.append(value(target.a, target.kind, [target.inputs, rank]))
        edit.inputs.append(value(target.b, target.kind, [rank, target.outputs]))


def _matrix(
    graph: OnnxFile, producers: dict[str, Node], name: str
) -> tuple[int, tuple[int, int]] | None:
    """Type and (rows, columns) of what is made of a stored matrix; None if it is not."""
    if name in graph.weights:
        weight = graph.weights[name]
        return (weight.kind, weight.shape) if len(weight.shape) == 2 else None
    made = producers.get(name)
    inner = _matrix(graph, producers, made.inputs[0]) if made and made.inputs else None
    if made is None or inner is None:
        return None
    kind, (rows, columns) = inner
    if made.op == "Transpose":
        return kind, (columns, rows)
    if made.op == "Cast":
        return made.attributes.get("to", 0), (rows, columns)
    if made.op == "DequantizeLinear":
        scale = graph.weights.get(made.inputs[1])
        return None if scale is None else (scale.kind, (rows, columns))
    return None
