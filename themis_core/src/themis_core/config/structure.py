"""Plain data into settings classes, reporting every problem instead of the first."""

from __future__ import annotations

import types
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from themis_core.config.problems import HIDDEN, Problems, shown
from themis_core.config.secrets import holds_secret, is_secret, sealed, without
from themis_core.plugins import owner_of
from themis_core.suggest import did_you_mean

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
        problems.add(key, without(str(error), secrets_of(cls, data)))
        return None
    except KeyboardInterrupt:
        raise
    # Foreign code, `sys.exit` included: whatever else it raises is its plugin's failure.
    except BaseException as error:  # noqa: BLE001
        told = without(repr(error), secrets_of(cls, data))
        owner = owner_of(cls.__module__)
        problems.add(
            key,
            f"[plugin_failed] the settings class {cls.__name__}{owner} raises {told}.",
            "Update or uninstall that distribution.",
        )
        return None


def secrets_of(cls: type[msgspec.Struct], data: dict[str, Any]) -> list[Any]:
    """The values in a table that must not be told, because they are or may hold secrets."""
    fields = msgspec.structs.fields(cls)
    return [data.get(field.encode_name) for field in fields if holds_secret(field.type)]


def _value(kind: Any, value: Any, key: str, problems: Problems) -> Any:
    """The value as its declared type; None, and a problem or several, if it is not of it."""
    inner = None if is_secret(kind) else _part(kind, value)
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        return structure(inner, value, key, problems)
    if get_origin(inner) is dict:
        _, item = get_args(inner)
        return {name: _value(item, v, _join(key, name), problems) for name, v in value.items()}
    if get_origin(inner) in (list, tuple):
        item = get_args(inner)[0]
        items = [_value(item, v, f"{key}[{i}]", problems) for i, v in enumerate(value)]
        made: Any = get_origin(inner)
        return made(items)
    try:
        converted = _converted(kind, value, problems.texts.get(key))
    except msgspec.ValidationError as error:
        _mistake(kind, value, key, str(error), problems)
        return None
    except TypeError as error:  # msgspec's way to say that the declaration itself makes no sense.
        problems.add(key, f"[plugin_failed] it is declared in a way that nobody can read: {error}.")
        return None
    return sealed(converted) if is_secret(kind) else converted


def _converted(kind: Any, value: Any, text: str | None) -> Any:
    """The value, or else the text of the variable that it was read from: a key of digits, say."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        if text is None:
            raise
        with suppress(msgspec.ValidationError):
            return msgspec.convert(text, kind, strict=True)
        raise


def _part(kind: Any, value: Any) -> Any:
    """The type to go on with, piece by piece, inside a table or list; None to take it whole."""
    if get_origin(kind) is Annotated:
        limited = any(
            limit is not None
            for meta in kind.__metadata__
            if isinstance(meta, msgspec.Meta)
            for limit in (meta.min_length, meta.max_length)
        )
        return None if limited else _part(kind.__origin__, value)
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for option in get_args(kind) if (part := _part(option, value)) is not None]
        return parts[0] if len(parts) == 1 else None
    if isinstance(value, dict):
        struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        return kind if struct or get_origin(kind) is dict else None
    if isinstance(value, list):
        several = get_origin(kind) is list or get_args(kind)[1:] == (...,)
        return kind if several and get_args(kind) else None
    return None


def _mistake(kind: Any, value: Any, key: str, text: str, problems: Problems) -> None:
    remedy = description(kind)
    if holds_secret(kind):
        problems.add(key, f"{without(text, value)}.", remedy, value=HIDDEN)
        return
    choices = _choices(kind)
    if choices:
        text = f"Expected {' or '.join(map(repr, choices))}"
        near = did_you_mean(value, map(str, choices)) if isinstance(value, str) else None
        remedy = " ".join(filter(None, (near, remedy)))
    given = shown(value)
    problems.add(key, f"{text} (the value is {given}).", remedy or None, value=given)


def _choices(kind: Any) -> list[Any]:
    """What a `Literal` allows, wherever it is in a type that has nothing else but None."""
    if get_origin(kind) is Annotated:
        return _choices(kind.__origin__)
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        options = [o for o in get_args(kind) if o is not type(None)]
        return _choices(options[0]) if len(options) == 1 else []
    return []


def description(kind: Any) -> str | None:
    """What a field's declaration says of it."""
    for meta in getattr(kind, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.description:
            return meta.description
    return None


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
