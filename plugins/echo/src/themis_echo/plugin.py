"""What this distribution offers to Themis. Importing it must not import what it describes."""

from __future__ import annotations

from themis_core.hooks import BackendPlugin, hookimpl
from themis_echo.settings import EchoSettings


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """One backend, `echo`."""
    return [
        BackendPlugin(
            name="echo",
            help="Answers with the prompt: needs no model, for trying things out.",
            settings=EchoSettings,
            factory="themis_echo.backend:EchoBackend",
        )
    ]
