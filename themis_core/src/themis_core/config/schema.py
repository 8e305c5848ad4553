"""The JSON Schema of `themis.toml` for the installed plugins, so that editors complete and check.

It knows what a schema can know: keys, types, ranges. That names refer to something, that includes
are there, and what settings mean together, `themis config check` tells.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from themis_core.config.settings import ModelKeys, PluginKeys, ServerKeys
from themis_core.errors import PluginNotFound, ThemisError
from themis_core.hooks import (
    BackendPlugin,
    BundledModel,
    Descriptor,
    FrontDoorPlugin,
    QuotaPlugin,
    ValidatorPlugin,
)
from themis_core.plugins import Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/$defs/%s.{name}"

_log = logging.getLogger("themis.config")

Schema = dict[str, Any]


def json_schema(registry: Registry) -> Schema:
    """The schema (JSON Schema 2020-12). Plugins that cannot be loaded are left out."""
    definitions: Schema = {}
    models = [
        _variant(definitions, ModelKeys, "backend", backend, backend.settings)
        for backend in installed(registry, "backends", BackendPlugin)
    ]
    models += _bundled(registry, definitions)
    doors = installed(registry, "front_doors", FrontDoorPlugin)
    servers = [_variant(definitions, ServerKeys, "use", d, d.settings) for d in doors]
    quotas = installed(registry, "quotas", QuotaPlugin)
    validators = installed(registry, "validators", ValidatorPlugin)
    return {
        "$schema": DIALECT,
        "title": "Themis configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "include": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "description": "Further files, as names or patterns relative to this one.",
            },
            "default": {
                "type": "string",
                "description": "The model for requests that name none. [the first model]",
            },
            "server": {"description": "How themis serve listens.", "anyOf": servers or [False]},
            "models": {
                "type": "object",
                "description": "The models, by name.",
                "additionalProperties": {"anyOf": models or [False]},
            },
            "quota": {
                "description": "Who may use how much.",
                "anyOf": [_variant(definitions, PluginKeys, "use", q, q.settings) for q in quotas]
                or [False],
            },
            "validators": {
                "type": "object",
                "description": "Validators of prompts and answers, by name, in their order.",
                "additionalProperties": {
                    "anyOf": [
                        _variant(definitions, PluginKeys, "use", v, v.settings) for v in validators
                    ]
                    or [False]
                },
            },
        },
        "$defs": definitions,
    }


def installed(registry: Registry, family: str, kind: type[Any]) -> list[Any]:
    """The descriptors of a family, by name. Plugins that cannot be loaded are left out."""
    found = []
    for name in registry.names:
        try:
            descriptor = registry.find(family, name, kind)
            if isinstance(descriptor, Descriptor):
                msgspec.json.schema_components([descriptor.settings])
            found.append(descriptor)
        except PluginNotFound:
            continue  # It is of another family.
        except ThemisError as error:
            # `themis plugins` and `themis doctor` tell more.
            _log.warning("Plugin %r is left out: %s", name, error)
        except Exception as error:  # noqa: BLE001 - a foreign class may raise anything.
            _log.warning("Plugin %r is left out, its settings say nothing: %r", name, error)
    return found


def _bundled(registry: Registry, definitions: Schema) -> list[Schema]:
    """Tables with `source`: of the backend's own settings, none is required."""
    found = []
    backends = {b.name: b for b in installed(registry, "backends", BackendPlugin)}
    for model in installed(registry, "models", BundledModel):
        for name in model.backends.keys() & backends.keys():
            backend = backends[name]
            table = _table(definitions, ModelKeys, backend.settings)
            table["required"] = ["source"]
            table["properties"]["source"] = {**table["properties"]["source"], "const": model.name}
            table["properties"]["backend"] = {"const": name, "description": backend.help}
            found.append(table)
    return sorted(found, key=lambda table: str(table["properties"]["backend"]["const"]))


def _variant(
    definitions: Schema,
    keys: type[msgspec.Struct],
    chooser: str,
    plugin: Descriptor,
    settings: type[msgspec.Struct],
) -> Schema:
    """The table in which `chooser` names this plugin."""
    table = _table(definitions, keys, settings)
    own = table["properties"]
    own[chooser] = {"const": plugin.name, "description": plugin.help}
    own.pop("source", None)
    default = next(f.default for f in msgspec.structs.fields(keys) if f.encode_name == chooser)
    if plugin.name != default:
        table["required"] = sorted({*table["required"], chooser})
    return table


def _table(
    definitions: Schema, keys: type[msgspec.Struct], settings: type[msgspec.Struct]
) -> Schema:
    """One table with the core's keys and a plugin's."""
    properties: Schema = {}
    required: list[str] = []
    for part in (settings, keys):  # The core's win, as they do when the file is read.
        owner = part.__module__  # Two plugins may have classes of one name.
        (root,), found = msgspec.json.schema_components([part], ref_template=_REFERENCE % owner)
        components = {f"{owner}.{name}": _closed(schema) for name, schema in found.items()}
        own = components.pop(str(root["$ref"]).rpartition("/")[2])
        definitions.update(components)
        properties |= own["properties"]
        required += own.get("required", [])
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(set(required)),
        "additionalProperties": False,
    }


def _closed(schema: Schema) -> Schema:
    """Unknown keys are refused everywhere, whatever the class says."""
    if "properties" in schema:
        return {**schema, "additionalProperties": False}
    return schema
