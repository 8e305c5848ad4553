"""`open`: from a configuration, or from backends at hand, to a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from themis_core.config import Config, load
from themis_core.contracts import Backend
from themis_core.plugins import Registry
from themis_core.runtime.configured import ConfiguredParts
from themis_core.runtime.models import ModelSource
from themis_core.runtime.runtime import Runtime


def open(  # noqa: A001 - `themis_core.open` is what people would guess.
    config: str | Path | Config | None = None,
    *,
    backends: Mapping[str, Backend] | None = None,
    registry: Registry | None = None,
) -> Runtime:
    """A runtime, to be entered with `async with`.

    `config` is a path (default: `$THEMIS_CONFIG`, `./themis.toml`, or else the bundled model).
    With `backends`, no configuration is read: these are the models, the first is the default.
    Raises `ConfigInvalid` with all problems, or the error of a plugin.
    """
    if backends is not None:
        if config is not None:
            raise TypeError("open() takes a config or backends, not both")
        return _from_backends(backends)
    registry = registry or Registry()
    path = None if isinstance(config, Config) else config
    if not isinstance(config, Config):
        config = load(config, registry)
    assembler = ConfiguredParts(registry, config, path)
    return Runtime(
        assembler.sources,
        default=config.default,
        validators=assembler.validators,
        quota=assembler.quota,
        on_event=assembler.on_event,
        assembler=assembler,
    )


def _from_backends(backends: Mapping[str, Backend]) -> Runtime:
    sources = {
        name: ModelSource(backend=type(backend).__name__, make=partial(_given, backend))
        for name, backend in backends.items()
    }
    return Runtime(sources, default=next(iter(backends), ""))


def _given(backend: Backend) -> Backend:
    return backend
