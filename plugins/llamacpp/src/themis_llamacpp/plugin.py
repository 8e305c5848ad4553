"""What the plugin offers. Importing this imports no llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from themis_core.hooks import BackendPlugin, Finding, hookimpl
from themis_llamacpp.settings import LlamaCppSettings


@hookimpl
def themis_backends() -> Sequence[BackendPlugin]:
    """The backend `llamacpp`."""
    return [
        BackendPlugin(
            name="llamacpp",
            help="GGUF models on llama.cpp, with continuous batching.",
            settings=LlamaCppSettings,
            factory="themis_llamacpp.backend:create",
        )
    ]


@hookimpl
def themis_diagnose() -> Sequence[Finding]:
    """The native library: version, processor features, devices."""
    from themis_llamacpp import diagnosis  # Late: only `themis doctor` needs it.

    return diagnosis.library()


@hookimpl
def themis_diagnose_model(backend: str, settings: msgspec.Struct) -> Sequence[Finding]:
    """A model's header and memory."""
    from themis_llamacpp import diagnosis

    assert isinstance(settings, LlamaCppSettings)
    return diagnosis.model(settings)
