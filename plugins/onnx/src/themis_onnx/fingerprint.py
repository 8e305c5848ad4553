"""Facts about a model's weights, and what tells it from others."""

from __future__ import annotations

import hashlib
import math
from importlib import metadata

from themis_onnx.directory import ModelFiles
from themis_onnx.onnx_file import BITS, OnnxFile

_SAMPLE = 4096  # bytes
_SAMPLES = 256  # of each file


def parameters(graph: OnnxFile) -> int:
    """Number of weights, as they were before quantisation."""
    count = 0
    packed = {node.inputs[1]: node for node in graph.nodes if node.op == "MatMulNBits"}
    beside = {name for node in packed.values() for name in node.inputs[2:]}
    for weight in graph.weights.values():
        if weight.name in packed:
            attributes = packed[weight.name].attributes
            count += attributes.get("K", 0) * attributes.get("N", 0)
        elif weight.name not in beside:
            count += math.prod(weight.shape)
    return count


def size_bytes(graph: OnnxFile) -> int:
    """Bytes of all weights."""
    return sum(-(-math.prod(w.shape) * BITS.get(w.kind, 0) // 8) for w in graph.weights.values())


def fingerprint(files: ModelFiles, provider: str) -> str:
    """A hash of what decides about the KV cache: the graph's files, runtime and provider.

    Of each file: its size, and 4 KiB at 256 places all over it. So another model or conversion
    differs; a change of single bytes between these places is not seen, and it is no proof against
    somebody who forges a file.
    """
    made = hashlib.blake2b(digest_size=16)
    made.update(f"{_runtime_version()} {provider}".encode())
    for file in files.graph.files:
        size = file.stat().st_size
        made.update(b"%d" % size)
        with file.open("rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(size * i // _SAMPLES)
                made.update(stream.read(_SAMPLE))
    return made.hexdigest()


def _runtime_version() -> str:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "onnxruntime"
