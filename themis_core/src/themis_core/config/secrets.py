"""Secrets: never shown, and written as references, `env:NAME` or `file:/path`, if one likes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from themis_core.config.problems import HIDDEN, Place, Problems
from themis_core.errors import ConfigInvalid

S = TypeVar("S", bound=msgspec.Struct)

ENVIRONMENT = "env:"
FILE = "file:"


class Secret(str):
    """A text whose `repr` does not tell it, so that no struct's `repr` and no traceback does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(HIDDEN)


def plain(value: Any) -> Any:
    """For msgspec's `enc_hook`, which does not know `Secret`: its text, to be sent or compared."""
    if isinstance(value, Secret):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no plain form")


def is_secret(kind: Any) -> bool:
    """True if the declaration has `Meta(extra={"secret": True})`: never to be shown."""
    return any(
        isinstance(meta, msgspec.Meta) and (meta.extra or {}).get("secret") is True
        for meta in getattr(kind, "__metadata__", ())
    )


def holds_secret(kind: Any, seen: frozenset[type] = frozenset()) -> bool:
    """True if something of this type may have a secret anywhere in it."""
    if is_secret(kind):
        return True
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
        hints = get_type_hints(kind, include_extras=True).values()
        return any(holds_secret(hint, seen | {kind}) for hint in hints)
    return any(holds_secret(argument, seen) for argument in get_args(kind))


def sealed(value: Any) -> Any:
    """The value of a secret setting, its texts wrapped in `Secret`."""
    return _texts(value, Secret)


def masked(kind: Any, value: Any) -> Any:
    """What may be shown of a value: references as they are, other secrets hidden."""
    if not value or not is_secret(kind):
        return value
    texts = _collected(value)
    if texts and all(text.startswith((ENVIRONMENT, FILE)) for text in texts):
        return value
    return HIDDEN


def without(text: str, value: Any) -> str:
    """A message from which the texts of a secret value are cut out."""
    for secret in sorted(filter(None, _collected(value)), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def resolve(settings: S, key: str, places: Mapping[str, Place], source: str) -> S:
    """The settings with what their references refer to, which is read now.

    Raises `ConfigInvalid` with all that are not there.
    """
    problems = Problems(places, source)
    resolved: S = _resolved(settings, key, problems)
    if problems.found:
        raise ConfigInvalid("A secret cannot be had:", problems=tuple(problems.found))
    return resolved


def resealed(settings: S) -> S:
    """Settings that have travelled as plain data, their secrets wrapped in `Secret` again."""
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        new = sealed(value) if is_secret(field.type) else _resealed(value)
        if new is not value:
            changes[field.name] = new
    return msgspec.structs.replace(settings, **changes) if changes else settings


def _resealed(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return resealed(value)
    if isinstance(value, dict):
        return {name: _resealed(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_resealed, value))
    return value


def _resolved(value: Any, key: str, problems: Problems) -> Any:
    if isinstance(value, dict):
        return {name: _resolved(v, f"{key}.{name}", problems) for name, v in value.items()}
    if isinstance(value, list | tuple):
        items = (_resolved(item, f"{key}[{i}]", problems) for i, item in enumerate(value))
        return type(value)(items)
    if not isinstance(value, msgspec.Struct):
        return value
    changes: dict[str, Any] = {}
    before = len(problems.found)
    for field in msgspec.structs.fields(value):
        old, inner = getattr(value, field.name), f"{key}.{field.encode_name}"
        if is_secret(field.type):
            new = _texts(old, lambda text, at=inner: _looked_up(text, at, problems))  # type: ignore[misc]
        else:
            new = _resolved(old, inner, problems)
        if new != old:
            changes[field.name] = new
    if not changes or len(problems.found) > before:
        return value
    try:
        return msgspec.structs.replace(value, **changes)
    except (ValueError, TypeError) as error:  # From the plugin's `__post_init__`.
        problems.add(key, without(str(error), list(changes.values())))
        return value


def _looked_up(text: str, key: str, problems: Problems) -> str:
    found: str | None = None
    if text.startswith(ENVIRONMENT):
        name = text.removeprefix(ENVIRONMENT)
        found = os.environ.get(name)
        missing = f"the environment variable {name!r} is not set or empty."
    elif text.startswith(FILE):
        path = text.removeprefix(FILE)
        missing = f"the file {path!r} is empty."
        try:
            found = Path(path).read_text("utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            missing = f"the file {path!r} cannot be read: {type(error).__name__}."
    else:
        return text
    if not found:
        problems.add(key, missing)
    return Secret(found or "")


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _texts(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_texts(item, change) for item in value)
    return value


def _collected(value: Any) -> list[str]:
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _texts(value, note)
    return found
