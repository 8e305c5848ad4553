"""What the plugin offers. Importing this imports no llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence

from themis_core.hooks import BackendPlugin, hookimpl
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
