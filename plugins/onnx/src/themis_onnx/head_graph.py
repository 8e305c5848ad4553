"""Sparing a graph the logits that nobody wants.

Of a prompt only the last position's logits are used, and with a large vocabulary the others are a
third of the work of a small model. So a graph that computes all of them gets an input that says how
many are wanted, as some exports have it: `num_logits_to_keep`.
"""

from __future__ import annotations

from themis_onnx.graph_edit import INT64, Edit, node, value, whole_number
from themis_onnx.onnx_file import Node, OnnxFile

KEEP = "num_logits_to_keep"
_ELEMENTWISE = {"Cast", "Identity", "Mul", "Div", "Tanh", "Add"}  # Between matrix and logits.
_LARGEST = 2**30  # Bytes of a file that is read for this.


def spare_logits(graph: OnnxFile, edit: Edit) -> bool:
    """Add the input. False, and nothing is changed, where the graph is of another form."""
    if KEEP in graph.inputs or graph.path.stat().st_size > _LARGEST:
        return False
    head = _head(graph)
    if head is None:
        return False
    hidden = head.inputs[0]
    edit.inputs.append(value(KEEP, INT64, [1]))
    edit.weights.append(whole_number("themis.end", 2**62))
    edit.weights.append(whole_number("themis.axis", 1))
    start, kept = "themis.start", "themis.kept"
    edit.before[head.span] = [
        node("Neg", [KEEP], start),
        node("Slice", [hidden, start, "themis.end", "themis.axis"], kept),
    ]
    edit.rename(head, {hidden: kept})
    return True


def _head(graph: OnnxFile) -> Node | None:
    """The product with the output matrix."""
    producers = {output: made for made in graph.nodes for output in made.outputs}
    found = producers.get("logits")
    while found is not None and found.op in _ELEMENTWISE:
        found = producers.get(found.inputs[0])
    return found if found is not None and found.op in ("MatMul", "MatMulNBits") else None
