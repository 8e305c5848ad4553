"""A sample of `themis.toml`, made from what the core and the installed plugins declare."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from themis_core.config.schema import installed
from themis_core.config.settings import DEFAULT_FRONT_DOOR, ModelKeys, PluginKeys, ServerKeys
from themis_core.config.structure import description
from themis_core.hooks import (
    BackendPlugin,
    BundledModel,
    FrontDoorPlugin,
    QuotaPlugin,
    ValidatorPlugin,
)
from themis_core.plugins import Registry

SCHEMA_FILE = "themis.schema.json"
_HEAD = f"""\
#:schema ./{SCHEMA_FILE}
# Editors complete and check this file with the schema above; `themis config schema` renews it.
# What is commented out shows the defaults, and the settings without one as an example.

# include = ["models/*.toml"]   # Further files, relative to this one.
"""


def sample(registry: Registry) -> str:
    """The text of a file that works as it is, if a bundled model can run or none is needed."""
    backends = installed(registry, "backends", BackendPlugin)
    bundled = [
        model
        for model in installed(registry, "models", BundledModel)
        if any(backend.name in model.backends for backend in backends)
    ]
    lines = [_HEAD]
    if bundled:
        lines.append(f"default = {_toml(bundled[0].name)}\n")
    lines += _server(registry)
    for model in bundled:
        lines += [f"# {model.help}", f"[models.{model.name}]", f"source = {_toml(model.name)}"]
        lines += [*_settings(ModelKeys, {"backend", "source"}), ""]
    for backend in backends:
        title = f"my-{backend.name}"
        lines += [f"# {backend.help}", f"# [models.{title}]", f"# backend = {_toml(backend.name)}"]
        lines += [*_settings(backend.settings), *_subtables(backend.settings, f"models.{title}")]
        lines.append("")
    for quota in installed(registry, "quotas", QuotaPlugin):
        lines += [f"# {quota.help}", "# [quota]", f"# use = {_toml(quota.name)}"]
        lines += [*_settings(PluginKeys, {"use"}), *_settings(quota.settings), ""]
    for validator in installed(registry, "validators", ValidatorPlugin):
        lines += [f"# {validator.help}", f"# [validators.{validator.name}]"]
        lines += [f"# use = {_toml(validator.name)}", *_settings(PluginKeys, {"use"})]
        lines += [*_settings(validator.settings), ""]
    return "\n".join(lines).rstrip() + "\n"


def _server(registry: Registry) -> Iterator[str]:
    doors = {door.name: door for door in installed(registry, "front_doors", FrontDoorPlugin)}
    if not doors:
        return
    yield from ("[server]", *_settings(ServerKeys))
    if DEFAULT_FRONT_DOOR in doors:
        settings = doors[DEFAULT_FRONT_DOOR].settings
        yield from (*_settings(settings), *_subtables(settings, "server"))
    yield ""


def _settings(settings: type[msgspec.Struct], without: set[str] | None = None) -> Iterator[str]:
    """Each field but tables, commented out, with what it means."""
    for field in msgspec.structs.fields(settings):
        if field.encode_name in (without or set()) or _is_table(field.type):
            continue
        text = description(field.type)
        if text:
            yield from textwrap.wrap(text, 90, initial_indent="#   ", subsequent_indent="#   ")
        example = _toml(_default(field))
        yield f"# {field.encode_name} = {example}" if example else f"# {field.encode_name} ="


def _subtables(settings: type[msgspec.Struct], key: str) -> Iterator[str]:
    for field in msgspec.structs.fields(settings):
        if _is_table(field.type):
            yield f"# [{key}.{field.encode_name}]"
            yield from _settings(field.type)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.to_builtins(field.default_factory())
    if field.default is not msgspec.NODEFAULT:
        return msgspec.to_builtins(field.default)
    return "…"  # It is required.


def _toml(value: Any) -> str:
    """A value as TOML; empty for None, which TOML cannot say."""
    if value is None:
        return ""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)
