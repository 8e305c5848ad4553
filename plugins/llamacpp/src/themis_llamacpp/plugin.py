"""What this distribution offers to Themis. Importing it must not import llama.cpp."""

from __future__ import annotations

from themis_core.hooks import BackendPlugin, hookimpl

from themis_llamacpp.settings import LlamaCppSettings


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """One backend, `llamacpp`."""
    return [
        BackendPlugin(
            name="llamacpp",
            help="Runs GGUF models with llama.cpp, on the CPU or a GPU, many requests at once.",
            settings=LlamaCppSettings,
            factory="themis_llamacpp.backend:create",
        )
    ]
