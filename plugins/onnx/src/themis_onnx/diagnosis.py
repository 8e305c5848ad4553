"""What `themis doctor` tells of ONNX Runtime and of its models; the latter are not loaded."""

from __future__ import annotations

import mmap
from importlib import metadata
from pathlib import Path

from themis_core.errors import ModelFileInvalid, ModelLoadFailed
from themis_core.hooks import Finding, Level
from themis_onnx.directory import ModelFiles, find
from themis_onnx.fingerprint import parameters, size_bytes
from themis_onnx.graph_edit import node, value
from themis_onnx.machine import default_threads, memory_limit
from themis_onnx.onnx_file import (
    BITS,
    FLOAT,
    GRAPH_INPUT,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    MODEL_GRAPH,
    MODEL_OPSET,
)
from themis_onnx.ort import provider_name, runtime, session
from themis_onnx.protobuf import Field, bytes_field, fields, number_field, text
from themis_onnx.runner import planned_tokens
from themis_onnx.settings import OnnxSettings
from themis_onnx.signature import declared_heads, is_encoder, trained_context

_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_REMOTE = "AzureExecutionProvider"  # Sends what it is given to a service; it computes nothing here.


def library() -> list[Finding]:
    """Version, and which of its providers really compute."""
    try:
        ort = runtime()
        available: list[str] = ort.get_available_providers()
    except (ModelLoadFailed, OSError, AttributeError) as error:
        told = error.message if isinstance(error, ModelLoadFailed) else f"It is broken: {error!r}."
        remedy = "Install themis-onnx[cpu] or, for GPUs, themis-onnx[gpu]; never both."
        return [Finding(level="error", subject="ONNX Runtime", message=told, remedy=remedy)]
    wheels = [f"{name} {version}" for name in _WHEELS if (version := _version(name))]
    message = f"{', '.join(wheels) or ort.__version__}; {default_threads()} threads by default."
    data = {"version": ort.__version__, "wheels": wheels, "available": available}
    found = [Finding(level="ok", subject="ONNX Runtime", message=message, data=data)]
    if len(wheels) > 1:
        found.append(
            Finding(
                level="warning",
                subject="ONNX Runtime",
                message=f"{' and '.join(wheels)} write the same files: one has broken the other.",
                remedy="Uninstall all of them, then install the one that you want.",
            )
        )
    return found + [_tried(name) for name in available if name != _REMOTE]


def model(settings: OnnxSettings) -> list[Finding]:
    """The graph of a model, its provider, and the memory that it will need."""
    # Here it is an error, for the model would not start.
    found = [_tried(provider_name(settings.provider), "error")]
    total: dict[str, int] = {}
    for key in ("path", "draft_path"):
        given = getattr(settings, key)
        if given is None:
            continue
        variant = settings.variant if key == "path" else None
        try:
            files = find(Path(given).expanduser(), variant, settings.provider)
            encoder = is_encoder(files)
            needs = _memory(files, settings, encoder)
        except (ModelFileInvalid, ModelLoadFailed) as error:
            return [*found, _invalid(key, error)]
        found.append(_graph(key, files, encoder))
        total = {name: total.get(name, 0) + n for name, n in needs.items()}
    return [*found, _plan(total, settings)]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _tried(provider: str, otherwise: Level = "warning") -> Finding:
    """A graph of one operation shows what a list of providers does not: which one computes."""
    graph = (
        bytes_field(GRAPH_NODE, node("Identity", ["x"], "y"))
        + bytes_field(2, "trial")
        + bytes_field(GRAPH_INPUT, value("x", FLOAT, [1]))
        + bytes_field(GRAPH_OUTPUT, value("y", FLOAT, [1]))
    )
    trial = (
        number_field(1, 8)  # ir_version
        + bytes_field(MODEL_OPSET, number_field(2, 13))
        + bytes_field(MODEL_GRAPH, graph)
    )
    data = {"provider": provider}
    try:
        session(trial, Path(), provider=provider, threads=1, what="a graph of one operation")
    except ModelLoadFailed as error:
        return Finding(
            level=otherwise,
            subject=provider,
            message=f"It does not compute here: {error.message}",
            remedy=error.remedy,
            data=data | {"active": False},
        )
    message = "It is really active: a session was made with it."
    return Finding(level="ok", subject=provider, message=message, data=data | {"active": True})


def _graph(key: str, files: ModelFiles, encoder: bool) -> Finding:
    kind = files.config.get("model_type", "a model")
    trained = trained_context(files) or "an unknown number of"
    count = parameters(files.graph)
    return Finding(
        level="ok",
        subject=key,
        message=f"{files.root.name}/{files.graph.path.name}: {kind}, "
        f"{'an encoder' if encoder else 'a decoder'} of {count / 1e6:,.1f} M parameters and "
        f"{len(files.graph.nodes)} operations, trained for {trained} tokens.",
        data={"parameters": count, "files": [str(file) for file in files.graph.files]},
    )


def _memory(files: ModelFiles, settings: OnnxSettings, encoder: bool) -> dict[str, int]:
    weights = size_bytes(files.graph)
    if encoder:
        return {"weights": weights, "kv_cache": 0, "kv_tokens": 0}
    tokens = planned_tokens(settings.context or trained_context(files) or 0, settings)
    per_token = sum(_past_bits(files)) // 8
    return {"weights": weights, "kv_cache": tokens * per_token, "kv_tokens": tokens}


def _past_bits(files: ModelFiles) -> list[int]:
    """Bits for one token in each input that is a part of the KV cache."""
    heads, size = declared_heads(files)
    place = files.graph.graph
    found = []
    with (
        files.graph.path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        for item in _within(data, place, GRAPH_INPUT):
            name = "".join(text(data, field) for field in _within(data, item, 1))
            kind, shape = _type(data, item)
            # (sequences, heads, tokens, head size), with 0 for dimensions that have names only.
            if name.startswith("past") and len(shape) == 4:
                found.append(BITS.get(kind, 0) * (shape[1] or heads or 0) * (shape[3] or size or 0))
    return found


def _type(data: memoryview, item: Field) -> tuple[int, list[int]]:
    """Element type and dimensions of a `ValueInfoProto`: its TypeProto.tensor_type."""
    kind, shape = 0, list[int]()
    for typed in _within(data, item, 2):
        for tensor in _within(data, typed, 1):
            kind = sum(field.value for field in _within(data, tensor, 1))
            for dimensions in _within(data, tensor, 2):
                for one in _within(data, dimensions, 1):
                    shape.append(sum(field.value for field in _within(data, one, 1)))
    return kind, shape


def _within(data: memoryview, message: Field, number: int) -> list[Field]:
    return [f for f in fields(data, message.start, message.end) if f.number == number]


def _plan(total: dict[str, int], settings: OnnxSettings) -> Finding:
    needed = total["weights"] + total["kv_cache"]
    message = (
        f"About {_mib(needed)}: weights {_mib(total['weights'])}, KV cache of "
        f"{total['kv_tokens']:,} tokens {_mib(total['kv_cache'])}; and what a step computes with."
    )
    data = {"bytes": needed, **total}
    available = memory_limit()
    if provider_name(settings.provider) != provider_name("cpu"):
        return Finding(level="ok", subject="memory", message=message, data=data | {"bytes": 0})
    if available is None or needed <= available:
        return Finding(level="ok", subject="memory", message=message, data=data)
    return Finding(
        level="error",
        subject="memory",
        message=f"{message} There are {_mib(available)}.",
        remedy="Lower kv_tokens, context or parallel, or choose a smaller variant.",
        data=data,
    )


def _invalid(key: str, error: ModelFileInvalid | ModelLoadFailed) -> Finding:
    return Finding(
        level="error", subject=error.field or key, message=error.message, remedy=error.remedy
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"
