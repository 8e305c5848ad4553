"""From settings to a `Backend`: the engine around a `LlamaRunner`."""

from __future__ import annotations

from themis_engine import EngineBackend, EngineOptions, ModelRunner

from themis_llamacpp.settings import LlamaCppSettings


def create(settings: LlamaCppSettings) -> EngineBackend:
    """The backend, not yet loaded. `start` raises `ModelFileInvalid` or `ModelLoadFailed`."""

    def load() -> ModelRunner:
        # Imported here, in the engine's thread: llama.cpp takes half a second to import.
        from themis_llamacpp.runner import LlamaRunner

        return LlamaRunner(settings)

    options = EngineOptions(prefill_chunk=settings.prefill_chunk)
    return EngineBackend(load, backend="llamacpp", options=options)
