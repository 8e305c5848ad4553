"""The effective configuration: every key with its value and where that came from."""

from __future__ import annotations

from typing import Any

import msgspec

from themis_core.config.assemble import Config
from themis_core.config.problems import HIDDEN
from themis_core.config.secrets import holds_secret, is_secret, masked
from themis_core.config.secrets import plain as to_plain


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One key. `origin` is a file and line, an environment variable, or `default`."""

    key: str
    value: Any
    origin: str


def effective(config: Config) -> list[Entry]:
    """All keys of a configuration, secrets hidden."""
    entries = [_entry(config, "default", config.default)]
    for name, model in config.models.items():
        keys = msgspec.structs.replace(model.keys, backend=model.descriptor.name)
        entries += _struct(config, f"models.{name}", keys)
        entries += _struct(config, f"models.{name}", model.settings)
    plugins = {"quota": config.quota}
    plugins |= {f"validators.{name}": plugin for name, plugin in config.validators.items()}
    for key, plugin in plugins.items():
        if plugin is not None:
            entries.append(_entry(config, f"{key}.use", plugin.descriptor.name))
            entries += [
                _entry(config, f"{key}.{name}", getattr(plugin.keys, name))
                for name in ("timeout", "on_failure")
            ]
            entries += _struct(config, key, plugin.settings)
    if config.server is not None:
        entries += _struct(config, "server", config.server.keys)
        entries += _struct(config, "server", config.server.settings)
    return entries


def _struct(config: Config, key: str, settings: msgspec.Struct) -> list[Entry]:
    entries = []
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, msgspec.Struct):
            entries += _struct(config, f"{key}.{field.encode_name}", value)
            continue
        if is_secret(field.type):
            value = masked(field.type, value)
        elif value and holds_secret(field.type):  # Tables in a list, or of any name.
            value = HIDDEN
        entries.append(_entry(config, f"{key}.{field.encode_name}", value))
    return entries


def _entry(config: Config, key: str, value: Any) -> Entry:
    plain = msgspec.to_builtins(value, enc_hook=to_plain)
    place = config.places.get(key)
    return Entry(key=key, value=plain, origin="default" if place is None else str(place))
