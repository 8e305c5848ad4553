"""What the plugin offers. Importing this imports no ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

from themis_core.hooks import BackendPlugin, hookimpl
from themis_onnx.settings import OnnxSettings


@hookimpl
def themis_backends() -> Sequence[BackendPlugin]:
    """The backend `onnx`."""
    return [
        BackendPlugin(
            name="onnx",
            help="ONNX models on ONNX Runtime: generation with continuous batching, embeddings.",
            settings=OnnxSettings,
            factory="themis_onnx.backend:create",
        )
    ]
