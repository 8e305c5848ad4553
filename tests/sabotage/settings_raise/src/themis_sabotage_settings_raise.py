"""Its settings class raises something of its own."""

import msgspec

from themis_core.hooks import BackendPlugin, hookimpl


class Settings(msgspec.Struct, frozen=True):
    """Cannot be made."""

    def __post_init__(self) -> None:
        raise RuntimeError("no settings today")


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """One backend."""
    return [
        BackendPlugin(
            name="settings_raise", help="A test.", settings=Settings, factory="math:floor"
        )
    ]
