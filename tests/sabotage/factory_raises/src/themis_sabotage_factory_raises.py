"""Its factory raises something of its own."""

from themis_core.hooks import BackendPlugin, hookimpl


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """One backend."""
    return [
        BackendPlugin(
            name="factory_raises", help="A test.", factory="themis_sabotage_factory_raises:create"
        )
    ]


def create(settings: object) -> object:
    """What nobody uses."""
    raise RuntimeError(f"no backend for {settings!r}")
