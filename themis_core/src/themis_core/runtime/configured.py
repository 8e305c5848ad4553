"""From a configuration to the parts of a runtime, reusing those of the one before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from themis_core.config import Config, ModelConfig, ServerConfig, load, resolved
from themis_core.config.assemble import HookConfig
from themis_core.config.sources import DEFAULTS
from themis_core.contracts import Backend, Quota, Validator
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry, make
from themis_core.runtime.closing import close_in_order
from themis_core.runtime.guards import GuardedQuota, GuardedValidator
from themis_core.runtime.hooks import Hook
from themis_core.runtime.models import ModelPool, ModelSource
from themis_core.runtime.reload import Parts, ReloadReport
from themis_core.runtime.router import Router
from themis_core.worker import isolated_backend

_log = logging.getLogger("themis.runtime")

# What a plugin was made from, secrets included, and the plugin, guarded.
_Made = tuple[object, Any]


@dataclass(frozen=True, repr=False)
class _State:
    """A configuration, and what was made of it."""

    config: Config
    sources: dict[str, ModelSource]
    validators: dict[str, _Made]
    quota: _Made | None

    def facts(self) -> dict[str, object]:
        """What a reload may change, by dotted key."""
        found: dict[str, object] = {"default": self.config.default}
        for name, source in self.sources.items():
            found[f"models.{name}"] = (source.key, source.aliases, source.preload)
        for name, (origin, _) in self.validators.items():
            found[f"validators.{name}"] = (origin, self.config.validators[name].keys)
        if self.quota is not None and self.config.quota is not None:
            found["quota"] = (self.quota[0], self.config.quota.keys)
        return found

    def give_budgets(self) -> None:
        """Let the hooks have the budgets of this configuration, the shared ones too."""
        for name, (_, guard) in self.validators.items():
            guard.hook.budget = self.config.validators[name].keys
        if self.quota is not None and self.config.quota is not None:
            self.quota[1].hook.budget = self.config.quota.keys


class ConfiguredParts:
    """Makes what a configuration describes. `path` is the file that a reload reads again.

    Raises `ConfigInvalid` for secrets that cannot be had, and what a plugin's factory raises.
    """

    def __init__(self, registry: Registry, config: Config, path: str | Path | None) -> None:
        self._registry = registry
        self._path = path
        self._rereads = config.file is not None or path is not None
        self._state = _State(config, {}, {}, None)
        self._state = self._assembled(config, [])
        self._next = self._state

    @property
    def sources(self) -> dict[str, ModelSource]:
        """How to make each model."""
        return self._state.sources

    @property
    def validators(self) -> list[Validator]:
        """In the order of the configuration."""
        return [validator for _, validator in self._state.validators.values()]

    @property
    def quota(self) -> Quota | None:
        """The quota, if there is one."""
        return self._state.quota and self._state.quota[1]

    async def assemble(
        self, config: str | Path | Config | None, current: Parts
    ) -> tuple[Parts, ReloadReport]:
        """The parts of another configuration, with what stays as it is from `current`."""
        if not isinstance(config, Config):
            # In a thread: reading, and importing plugins, may take long.
            config = await asyncio.to_thread(load, config or self._file(), self._registry)
        fresh: list[Any] = []
        try:
            state = self._assembled(config, fresh)
        except BaseException:
            await close_in_order([(guard.hook.name, guard.aclose) for guard in fresh])
            raise
        aliases = {alias: name for name, m in state.sources.items() for alias in m.aliases}
        parts = Parts(
            Router(list(state.sources), aliases, config.default),
            ModelPool(state.sources, self.on_event, current.pool),
            [validator for _, validator in state.validators.values()],
            state.quota and state.quota[1],
        )
        self._next = state
        return parts, _report(self._state, state)

    def accepted(self) -> None:
        """What was assembled last is in force."""
        self._state = self._next
        self._state.give_budgets()

    def on_event(self, hook: str, model: str, arguments: dict[str, Any]) -> None:
        """Tell the plugins of a model that started or stopped."""
        try:
            getattr(self._registry.hook, hook)(model=model, **arguments)
        # Listeners are foreign code, and a model must not fail because somebody listens badly.
        except Exception:  # noqa: BLE001
            _log.exception("A plugin failed in %s for model %r.", hook, model)

    def _file(self) -> str | Path | None:
        if not self._rereads and self._state.config.source != DEFAULTS:
            raise ConfigInvalid(
                "This runtime was opened with a Config, so there is no file to read again.",
                remedy="Give the new configuration to reload().",
            )
        return self._path or self._state.config.file

    def _assembled(self, config: Config, fresh: list[Any]) -> _State:
        """Models to be made, validators and quota; those that had to be made go to `fresh`."""

        config = resolved(config, server=False)

        def one(
            guarded: type[GuardedValidator | GuardedQuota],
            key: str,
            plugin: HookConfig,
            before: _Made | None,
        ) -> _Made:
            origin = (plugin.descriptor, plugin.settings)
            if before is not None and before[0] == origin:
                return before
            hook = Hook(key, plugin.keys, plugin.descriptor.name)
            fresh.append(guarded(make(plugin.descriptor, plugin.settings), hook))
            return origin, fresh[-1]

        sources = {name: self._model(model) for name, model in config.models.items()}
        validators = {
            name: one(
                GuardedValidator, f"validators.{name}", plugin, self._state.validators.get(name)
            )
            for name, plugin in config.validators.items()
        }
        quota = None
        if config.quota is not None:
            quota = one(GuardedQuota, "quota", config.quota, self._state.quota)
        return _State(config, sources, validators, quota)

    def _model(self, model: ModelConfig) -> ModelSource:
        keys = model.keys
        made: Callable[[], Backend]
        if keys.isolation == "worker":
            made = partial(isolated_backend, model, self._registry)
        else:
            made = _made_once(partial(make, model.descriptor, model.settings))
        return ModelSource(
            backend=model.descriptor.name,
            make=made,
            aliases=keys.aliases,
            preload=keys.preload,
            key=(model.descriptor, model.settings, keys.isolation, keys.worker),
        )


def _made_once(again: Callable[[], Backend]) -> Callable[[], Backend]:
    """Makes one now, so that a factory that raises stops the start, and hands it out first."""
    first = [again()]
    return lambda: first.pop() if first else again()


def _report(old: _State, new: _State) -> ReloadReport:
    before, after = old.facts(), new.facts()
    both = before.keys() & after.keys()
    return ReloadReport(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(sorted(key for key in both if before[key] != after[key])),
        restart=tuple(sorted(_server_changes(old.config.server, new.config.server))),
    )


def _server_changes(old: ServerConfig | None, new: ServerConfig | None) -> Iterator[str]:
    """The keys of `[server]` that differ: the server reads them when it starts."""
    before, after = _server(old), _server(new)
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key):
            yield f"server.{key}"


def _server(server: ServerConfig | None) -> dict[str, object]:
    if server is None:
        return {}
    return {**msgspec.structs.asdict(server.settings), **msgspec.structs.asdict(server.keys)}
