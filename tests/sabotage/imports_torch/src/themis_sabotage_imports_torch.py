"""Imports a heavy library when it is imported, as descriptions must not."""

import torch  # type: ignore[import-not-found]  # noqa: F401

from themis_core.hooks import BackendPlugin, hookimpl


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """One backend."""
    return [
        BackendPlugin(
            name="imports_torch", help="A test.", factory="themis_sabotage_imports_torch:create"
        )
    ]


def create(settings: object) -> object:
    """What nobody uses."""
    return settings
