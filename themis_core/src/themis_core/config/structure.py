"""Plain data into settings classes, reporting every problem instead of the first."""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin

import msgspec

from themis_core.config.problems import Problems, shown

S = TypeVar("S", bound=msgspec.Struct)


def structure(cls: type[S], data: dict[str, Any], key: str, problems: Problems) -> S | None:
    """An instance of `cls` from `data`, the table at the dotted `key`; None if it has problems."""
    before = len(problems.found)
    fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
    for name in data.keys() - fields.keys():
        problems.unknown_key(_join(key, name), list(fields))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[field.name] = _value(field.type, data[name], _join(key, name), problems)
        elif field.required:
            problems.add(_join(key, name), "is missing.", description(field.type))
    if len(problems.found) > before:
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        problems.add(key, f"{error}")
        return None


def _value(kind: Any, value: Any, key: str, problems: Problems) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        return structure(kind, value, key, problems)
    if get_origin(kind) is dict and isinstance(value, dict):
        _, item = get_args(kind)
        return {name: _value(item, v, _join(key, name), problems) for name, v in value.items()}
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        given = "" if is_secret(kind) else f" (the value is {shown(value)})"
        problems.add(key, f"{error}{given}.", description(kind))
        return None


def description(kind: Any) -> str | None:
    """What a field's declaration says of it."""
    for meta in getattr(kind, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.description:
            return meta.description
    return None


def is_secret(kind: Any) -> bool:
    """True if the declaration has `Meta(extra={"secret": True})`: never to be shown."""
    return any(
        isinstance(meta, msgspec.Meta) and (meta.extra or {}).get("secret") is True
        for meta in getattr(kind, "__metadata__", ())
    )


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
