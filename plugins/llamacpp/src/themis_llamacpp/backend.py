"""The factory: settings in, a `Backend` out. Nothing native is loaded before `start`."""

from __future__ import annotations

from themis_engine import EngineBackend, EngineOptions, ModelRunner
from themis_llamacpp.settings import LlamaCppSettings


def create(settings: LlamaCppSettings) -> EngineBackend:
    """A backend for one GGUF model."""
    return EngineBackend(
        lambda: _load(settings),
        backend="llamacpp",
        options=EngineOptions(prefill_chunk=settings.prefill_chunk),
    )


def _load(settings: LlamaCppSettings) -> ModelRunner:
    # Imported in the engine's thread: loading the native library takes half a second.
    from themis_llamacpp.runner import LlamaRunner

    return LlamaRunner(settings)
