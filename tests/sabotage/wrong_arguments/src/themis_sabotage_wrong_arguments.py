"""Takes an argument that the hook does not have."""

from themis_core.hooks import BackendPlugin, hookimpl


@hookimpl
def themis_backends(nonsense: object) -> list[BackendPlugin]:
    """Its argument is not of this hook."""
    raise AssertionError(nonsense)
