"""What the plugin offers. Importing this imports no ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from themis_core.hooks import BackendPlugin, Finding, hookimpl
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


@hookimpl
def themis_diagnose() -> Sequence[Finding]:
    """ONNX Runtime: version, and the providers that really compute."""
    from themis_onnx import diagnosis  # Late: only `themis doctor` needs it.

    return diagnosis.library()


@hookimpl
def themis_diagnose_model(backend: str, settings: msgspec.Struct) -> Sequence[Finding]:
    """A model's graph, provider and memory."""
    from themis_onnx import diagnosis

    assert isinstance(settings, OnnxSettings)
    return diagnosis.model(settings)
