"""Structs whose Protobuf message has the same fields by the same names: copied field by field.

What JSON can express and Protobuf cannot (schemas, variables of templates) is a text of JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from themis_core.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)
M = TypeVar("M", bound=Message)


class _Field(NamedTuple):
    name: str
    kind: str  # "one", "optional", "many" or "map"


@cache
def _fields(cls: type[msgspec.Struct], message: Any) -> tuple[_Field, ...]:
    """How each field of the struct is in the message; messages within messages are left out."""
    known = message.DESCRIPTOR.fields_by_name
    found = []
    for name in cls.__struct_fields__:
        field = known.get(name)
        if field is None:
            continue
        nested = field.message_type
        if nested is not None and nested.GetOptions().map_entry:
            found.append(_Field(name, "map"))
        elif field.type != FieldDescriptor.TYPE_MESSAGE and field.enum_type is None:
            if field.is_repeated:
                found.append(_Field(name, "many"))
            else:
                found.append(_Field(name, "optional" if field.has_presence else "one"))
    return tuple(found)


def _class(message: Message) -> Any:
    """Its type: `Any`, as the stubs have messages without a hash."""
    return type(message)


def write(struct: msgspec.Struct, message: M) -> M:
    """Copy what is plain: numbers, texts, tuples and mappings of them. Gives the message back."""
    for name, kind in _fields(type(struct), _class(message)):
        value = getattr(struct, name)
        if kind == "many":
            getattr(message, name).extend(value)
        elif kind == "map":
            getattr(message, name).update(value)
        elif value is not None:
            setattr(message, name, value)
    return message


def read(message: Message, cls: type[T], **others: Any) -> T:
    """The struct of a message; `others` are the fields that are not plain.

    A field that is absent has the struct's default. Raises what the struct's own checks raise.
    """
    for name, kind in _fields(cls, _class(message)):
        if name in others:
            continue
        value = getattr(message, name)
        if kind == "many":
            others[name] = tuple(value)
        elif kind == "map":
            others[name] = dict(value)
        elif kind == "one" or message.HasField(name):
            others[name] = value
    return cls(**others)


@contextmanager
def expressing(field: str | None = None) -> Iterator[None]:
    """Raises `InvalidRequest` for a value that has no place in its Protobuf field."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(
            f"The request cannot be sent to another process: {error}.",
            field=field,
            remedy="Use plain JSON values, integers of 64 bits and text without lone surrogates.",
        ) from error


def to_json(value: Any) -> str:
    """As JSON. Raises as `expressing` expects it."""
    return msgspec.json.encode(value).decode()


def from_json(text: str, field: str) -> Any:
    """What a text of JSON says. Raises `InvalidRequest`, naming the field."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{field} is not JSON: {error}.", field=field) from error


def object_from_json(text: str, field: str) -> dict[str, Any]:
    """The same for an object; an empty text is an empty object."""
    found = from_json(text, field) if text else {}
    if not isinstance(found, dict):
        raise InvalidRequest(f"{field} is no JSON object.", field=field)
    return found


def number_of(enum: Any, name: str) -> Any:
    """A value of a Protobuf enumeration, by name; the stubs disagree about its type."""
    return enum.Value(name)
