"""From settings to a runner of the right kind."""

from __future__ import annotations

from pathlib import Path

from themis_core.errors import ModelLoadFailed
from themis_engine import ModelRunner
from themis_onnx.adapter_runner import OnnxAdapterRunner
from themis_onnx.directory import find
from themis_onnx.encoder import OnnxEncoder
from themis_onnx.lora_graph import targets
from themis_onnx.runner import OnnxRunner
from themis_onnx.settings import OnnxSettings
from themis_onnx.signature import is_encoder


def load(settings: OnnxSettings) -> ModelRunner:
    """Load a model. Raises `ModelFileInvalid` or `ModelLoadFailed` with the true cause."""
    files = find(Path(settings.path).expanduser(), settings.variant, settings.provider)
    if is_encoder(files):
        return OnnxEncoder(settings, files)
    if targets(files.graph):
        return OnnxAdapterRunner(settings, files)
    if settings.adapters:
        raise ModelLoadFailed(
            "adapters is set, but this graph cannot take any: none of its matrices is named as the "
            "projections of a layer are (q_proj, down_proj and so on).",
            field="adapters",
            remedy="Use another export or variant of the model, or leave adapters out.",
            plugin="onnx",
        )
    return OnnxRunner(settings, files)
