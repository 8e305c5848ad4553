"""Every key of `themis.toml` that belongs to the core.

A table that configures a plugin has the keys declared here and, beside them, the keys that the
plugin itself declares.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

DEFAULT_PORT = 8765
DEFAULT_FRONT_DOOR = "openai"
DEFAULT_MODEL = "tiny"

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """`[server]`: how `themis serve` listens; further keys belong to the front door."""

    use: Annotated[_Text, msgspec.Meta(description="The front door plugin.")] = DEFAULT_FRONT_DOOR
    host: Annotated[str, msgspec.Meta(description="The address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, msgspec.Meta(ge=0, le=65535, description="The port; 0 takes a free one.")
    ] = DEFAULT_PORT


class ModelKeys(msgspec.Struct, frozen=True, kw_only=True):
    """`[models.<name>]`: one model; further keys belong to its backend."""

    backend: Annotated[
        _Text | None,
        msgspec.Meta(description="The backend plugin. May be left out if source is given."),
    ] = None
    source: Annotated[
        _Text | None,
        msgspec.Meta(description="A bundled model, which brings its backend's settings."),
    ] = None
    aliases: Annotated[
        tuple[str, ...], msgspec.Meta(description="Further names that requests may use.")
    ] = ()
    preload: Annotated[
        bool, msgspec.Meta(description="Load at start-up instead of at the first request.")
    ] = False


class PluginKeys(msgspec.Struct, frozen=True, kw_only=True):
    """`[quota]` and `[validators.<name>]`; further keys belong to the plugin."""

    use: Annotated[_Text, msgspec.Meta(description="The plugin.")]


TABLES = ("default", "server", "models", "quota", "validators")
