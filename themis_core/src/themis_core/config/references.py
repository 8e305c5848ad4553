"""The references to secrets in a whole configuration, looked up."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from themis_core.config.assemble import Config, PluginConfig
from themis_core.config.problems import Problem
from themis_core.config.secrets import resolve
from themis_core.errors import ConfigInvalid

P = TypeVar("P", bound=PluginConfig)


def resolved(config: Config, *, server: bool = True) -> Config:
    """The configuration with what its references (`env:`, `file:`) refer to, which is read now.

    Those of `[server]` are left alone for those who do not serve, and `server` is False. Raises
    `ConfigInvalid` with all that are not there.
    """
    problems: list[Problem] = []

    def one(key: str, plugin: P) -> P:
        try:
            found = resolve(plugin.settings, key, config.places, config.source)
        except ConfigInvalid as error:
            problems.extend(error.problems)
            return plugin
        return msgspec.structs.replace(plugin, settings=found)

    changed = msgspec.structs.replace(
        config,
        models={name: one(f"models.{name}", model) for name, model in config.models.items()},
        server=one("server", config.server) if server and config.server else config.server,
        quota=config.quota and one("quota", config.quota),
        validators={
            name: one(f"validators.{name}", plugin) for name, plugin in config.validators.items()
        },
    )
    if problems:
        raise ConfigInvalid("Secrets cannot be had:", problems=tuple(problems))
    return changed
