"""Has a name that twin has as well."""

from themis_core.hooks import BackendPlugin, hookimpl


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """One backend."""
    return [BackendPlugin(name="twin", help="A test.", factory="themis_sabotage_twin_too:create")]


def create(settings: object) -> object:
    """What nobody uses."""
    return settings
