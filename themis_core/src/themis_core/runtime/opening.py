"""`open`: from a configuration, or from backends at hand, to a runtime."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from themis_core.config import Config, ModelConfig, load
from themis_core.contracts import Backend
from themis_core.plugins import Registry, make
from themis_core.runtime.models import ModelSource
from themis_core.runtime.runtime import Runtime
from themis_core.worker import isolated_backend

_log = logging.getLogger("themis.runtime")


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
    if not isinstance(config, Config):
        config = load(config, registry)
    return Runtime(
        {name: _source(model, registry) for name, model in config.models.items()},
        default=config.default,
        validators=[make(v.descriptor, v.settings) for v in config.validators.values()],
        quota=make(config.quota.descriptor, config.quota.settings) if config.quota else None,
        on_event=partial(_call_hook, registry),
    )


def _source(model: ModelConfig, registry: Registry) -> ModelSource:
    isolated = model.keys.isolation == "worker"
    return ModelSource(
        backend=model.descriptor.name,
        make=partial(isolated_backend, model, registry)
        if isolated
        else partial(make, model.descriptor, model.settings),
        aliases=model.keys.aliases,
        preload=model.keys.preload,
    )


def _from_backends(backends: Mapping[str, Backend]) -> Runtime:
    sources = {
        name: ModelSource(backend=type(backend).__name__, make=partial(_given, backend))
        for name, backend in backends.items()
    }
    return Runtime(sources, default=next(iter(backends), ""))


def _given(backend: Backend) -> Backend:
    return backend


def _call_hook(registry: Registry, hook: str, model: str, arguments: dict[str, Any]) -> None:
    try:
        getattr(registry.hook, hook)(model=model, **arguments)
    # Listeners are foreign code, and a model must not fail because somebody listens badly.
    except Exception:  # noqa: BLE001
        _log.exception("A plugin failed in %s for model %r.", hook, model)
