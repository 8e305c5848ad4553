"""From raw data to a checked configuration: every table structured, every plugin resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from themis_core.config.problems import Place, Problems, shown
from themis_core.config.settings import (
    DEFAULT_MODEL,
    TABLES,
    WORKER_TRANSPORT,
    ModelKeys,
    PluginKeys,
    ServerKeys,
)
from themis_core.config.sources import RawConfig, read
from themis_core.config.structure import structure
from themis_core.errors import ConfigInvalid, PluginNotFound, ThemisError
from themis_core.hooks import (
    BackendPlugin,
    BundledModel,
    Descriptor,
    FrontDoorPlugin,
    QuotaPlugin,
    TransportPlugin,
    ValidatorPlugin,
)
from themis_core.plugins import Registry
from themis_core.suggest import did_you_mean

K = TypeVar("K", bound=msgspec.Struct)
D = TypeVar("D", bound=Descriptor)


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin and its checked settings."""

    descriptor: Descriptor
    settings: msgspec.Struct


class ModelConfig(PluginConfig, frozen=True, kw_only=True):
    """A model: its backend and settings, and the core's own keys."""

    name: str
    keys: ModelKeys


class ServerConfig(PluginConfig, frozen=True, kw_only=True):
    """The front door and where it listens."""

    keys: ServerKeys


class HookConfig(PluginConfig, frozen=True, kw_only=True):
    """A validator or quota, and the budget of its calls, which is part of the core's own keys."""

    keys: PluginKeys


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A complete, checked configuration. `server` is None if the file has no such table."""

    source: str
    places: dict[str, Place]
    file: str | None = None
    default: str
    models: dict[str, ModelConfig]
    server: ServerConfig | None = None
    quota: HookConfig | None = None
    validators: dict[str, HookConfig] = {}


def load(
    path: str | Path | None, registry: Registry, environment: Mapping[str, str] | None = None
) -> Config:
    """Read and check the configuration. Raises `ConfigInvalid` with all problems."""
    raw = read(path, environment)
    registry.obey_lock_beside(path)
    return _Assembly(raw, registry).config()


def server_config(path: str | Path | None, registry: Registry) -> ServerConfig:
    """The `[server]` table, or its defaults. Raises `ConfigInvalid` or the plugin's error."""
    raw = read(path)
    registry.obey_lock_beside(path)
    raw.data, raw.problems = {"server": raw.data.get("server", {})}, []
    assembly = _Assembly(raw, registry)
    server = assembly.server()
    if server is None:
        raise assembly.invalid()
    return server


class _Assembly:
    def __init__(self, raw: RawConfig, registry: Registry) -> None:
        self._raw = raw
        self._registry = registry
        self._problems = Problems(raw.places, raw.source, raw.texts)
        self._problems.found += raw.problems

    def invalid(self) -> ConfigInvalid:
        return ConfigInvalid(
            "The configuration cannot be used:", problems=tuple(self._problems.found)
        )

    def config(self) -> Config:
        for name in self._raw.data.keys() - set(TABLES):
            self._problems.unknown_key(name, list(TABLES))
        models = self._models()
        default = self._default(list(models))
        server = self.server() if "server" in self._raw.data else None
        quota = self._plugin(self._raw.data.get("quota"), "quota", "quotas", QuotaPlugin)
        validators = {
            name: self._plugin(table, f"validators.{name}", "validators", ValidatorPlugin)
            for name, table in self._table("validators").items()
        }
        if self._problems.found:
            raise self.invalid()
        return Config(
            source=self._raw.source,
            places=self._raw.places,
            file=self._raw.source if self._raw.files else None,
            default=default,
            models=models,
            server=server,
            quota=quota,
            validators={name: plugin for name, plugin in validators.items() if plugin},
        )

    def server(self) -> ServerConfig | None:
        data = self._table("server")
        keys, rest = self._split(ServerKeys, data, "server")
        if keys is None:
            return None
        found = self._resolve("front_doors", keys.use, FrontDoorPlugin, "server.use")
        settings = found and structure(found.settings, rest, "server", self._problems)
        if found is None or settings is None:
            return None
        return ServerConfig(descriptor=found, settings=settings, keys=keys)

    def _models(self) -> dict[str, ModelConfig]:
        tables = self._table("models") or {DEFAULT_MODEL: {"source": DEFAULT_MODEL}}
        built = [self._model(name, table) for name, table in tables.items()]
        models = {model.name: model for model in built if model is not None}
        taken: dict[str, str] = dict.fromkeys(tables, "a model")
        for model in models.values():
            for alias in model.keys.aliases:
                if alias in taken:
                    self._problems.add(
                        f"models.{model.name}.aliases",
                        f"{alias!r} is already the name of {taken[alias]}.",
                        "Choose another name.",
                        value=shown(alias),
                    )
                taken[alias] = f"an alias of {model.name!r}"
        return models

    def _model(self, name: str, table: Any) -> ModelConfig | None:
        key = f"models.{name}"
        if not isinstance(table, dict):
            self._no_table(key, table)
            return None
        keys, rest = self._split(ModelKeys, table, key)
        if keys is None:
            return None
        if keys.source is not None:
            resolved = self._bundled(keys, key)
        elif keys.backend is not None:
            resolved = keys.backend, {}
        else:
            self._problems.add(f"{key}.backend", "is missing.", "Give backend, or source.")
            for near in rest:  # What else is allowed here, only the backend would know.
                if did_you_mean(near, ("backend", "source")):
                    self._problems.unknown_key(f"{key}.{near}", ["backend", "source"])
            return None
        if resolved is None:
            return None
        backend, given = resolved
        for name_given in given.keys() - rest.keys():
            self._raw.places[f"{key}.{name_given}"] = Place(f"bundled model {keys.source}")
        if keys.isolation == "worker":
            self._resolve("transports", WORKER_TRANSPORT, TransportPlugin, f"{key}.isolation")
        elif "worker" in table:
            remedy = 'Set isolation = "worker" beside it, or remove it.'
            self._problems.add(f"{key}.worker", "has no effect on a model without worker.", remedy)
        found = self._resolve("backends", backend, BackendPlugin, f"{key}.backend")
        settings = found and structure(found.settings, {**given, **rest}, key, self._problems)
        if found is None or settings is None:
            return None
        if self._guarded(lambda: self._load_used(found, settings), key, backend) is None:
            return None
        return ModelConfig(name=name, keys=keys, descriptor=found, settings=settings)

    def _load_used(self, backend: BackendPlugin, settings: Any) -> BackendPlugin:
        self._registry.load_used(backend, settings)
        return backend

    def _bundled(self, keys: ModelKeys, key: str) -> tuple[str, dict[str, Any]] | None:
        """Backend and settings for a bundled model: the one named, or the best installed."""
        source = keys.source or ""
        model = self._guarded(
            lambda: self._registry.find("models", source, BundledModel), f"{key}.source", source
        )
        if model is None:
            return None
        wanted = [keys.backend] if keys.backend else list(model.backends)
        for backend in wanted:
            if backend in self._registry.names and backend in model.backends:
                return backend, model.backends[backend]
        if keys.backend and keys.backend not in model.backends:
            message = f"{source!r} cannot run on {keys.backend!r}."
            remedy = f"It runs on: {', '.join(model.backends)}."
        else:
            message = f"no backend for {source!r} is installed."
            remedy = f"Install one of: {', '.join(f'themis-{name}' for name in wanted)}."
        self._problems.add(f"{key}.backend", message, remedy)
        return None

    def _default(self, models: list[str]) -> str:
        default = self._raw.data.get("default", models[0] if models else "")
        # With an unread file, its models are missing too.
        if models and default not in models and not self._raw.problems:
            self._problems.add(
                "default",
                f"{shown(default)} is not a configured model.",
                did_you_mean(str(default), models) or f"Configured: {', '.join(models)}.",
                value=shown(default),
            )
        return str(default)

    def _plugin(self, data: Any, key: str, family: str, kind: type[D]) -> HookConfig | None:
        if data is None:
            return None
        if not isinstance(data, dict):
            self._no_table(key, data)
            return None
        keys, rest = self._split(PluginKeys, data, key)
        if keys is None:
            return None
        found = self._resolve(family, keys.use, kind, f"{key}.use")
        settings = found and structure(found.settings, rest, key, self._problems)
        if found is None or settings is None:
            return None
        return HookConfig(descriptor=found, settings=settings, keys=keys)

    def _table(self, name: str) -> dict[str, Any]:
        value = self._raw.data.get(name, {})
        if isinstance(value, dict):
            return value
        self._no_table(name, value)
        return {}

    def _no_table(self, key: str, value: Any) -> None:
        self._problems.add(key, f"must be a table, not {shown(value)}.", value=shown(value))

    def _split(
        self, kind: type[K], data: dict[str, Any], key: str
    ) -> tuple[K | None, dict[str, Any]]:
        """The core's own keys of a table, structured, and the rest, which is the plugin's."""
        own = {field.encode_name for field in msgspec.structs.fields(kind)}
        ours = {name: value for name, value in data.items() if name in own}
        rest = {name: value for name, value in data.items() if name not in own}
        return structure(kind, ours, key, self._problems), rest

    def _resolve(self, family: str, name: str, kind: type[D], key: str) -> D | None:
        return self._guarded(lambda: self._registry.find(family, name, kind), key, name)

    def _guarded(self, find: Callable[[], K], key: str, name: str) -> K | None:
        try:
            return find()
        except PluginNotFound as error:
            self._problems.add(key, error.message, error.remedy, value=shown(name))
        except ThemisError as error:
            message = f"[{error.code}] {error.message}"
            self._problems.add(key, message, error.remedy, value=shown(name))
        return None
