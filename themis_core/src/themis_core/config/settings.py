"""Every key of `themis.toml` that belongs to the core.

A table that configures a plugin has the keys declared here and, beside them, the keys that the
plugin itself declares.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from themis_core.contracts import Budget

DEFAULT_PORT = 8765
DEFAULT_FRONT_DOOR = "openai"
DEFAULT_MODEL = "tiny"
WORKER_TRANSPORT = "shm"  # What `isolation = "worker"` talks over.

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """`[server]`: how `themis serve` listens; further keys belong to the front door."""

    use: Annotated[_Text, msgspec.Meta(description="The front door plugin.")] = DEFAULT_FRONT_DOOR
    host: Annotated[str, msgspec.Meta(description="The address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, msgspec.Meta(ge=0, le=65535, description="The port; 0 takes a free one.")
    ] = DEFAULT_PORT


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker is supervised; only with `isolation = "worker"`. Times in seconds."""

    resume: Annotated[
        bool,
        msgspec.Meta(description="Continue requests on the next worker when theirs has died."),
    ] = True
    crash_limit: Annotated[
        int,
        msgspec.Meta(ge=1, description="So many crashes within crash_window are a crash loop."),
    ] = 5
    crash_window: Annotated[
        float, msgspec.Meta(gt=0, description="Seconds in which crashes are counted together.")
    ] = 60.0
    backoff: Annotated[
        float,
        msgspec.Meta(ge=0, description="Seconds before the second restart; then ever twice that."),
    ] = 0.1
    backoff_max: Annotated[
        float, msgspec.Meta(ge=0, description="Most seconds between two restarts.")
    ] = 10.0
    stop_timeout: Annotated[
        float, msgspec.Meta(ge=0, description="Seconds a worker has to stop before it is killed.")
    ] = 10.0


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
    isolation: Annotated[
        Literal["none", "worker"],
        msgspec.Meta(
            description="Where the model runs: none is this process; worker is a process of its "
            "own, whose crash costs no other model anything."
        ),
    ] = "none"
    worker: WorkerOptions = WorkerOptions()


class PluginKeys(Budget, frozen=True, kw_only=True):
    """`[quota]` and `[validators.<name>]`; further keys belong to the plugin."""

    use: Annotated[_Text, msgspec.Meta(description="The plugin.")]


TABLES = ("include", "default", "server", "models", "quota", "validators")
