"""From the bytes of a body to its struct, with errors that name the field."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar, get_args

import msgspec

from themis_core.errors import InvalidRequest, UnsupportedField
from themis_core.suggest import did_you_mean
from themis_openai_server.body import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    Strict,
)

B = TypeVar("B", bound=Strict)

# msgspec tells where an error is only in its message: "… - at `$.messages[0].role`".
_WHERE = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_DECODERS: dict[type[Strict], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatBody, CompletionBody, EmbeddingBody)
}


def decode(
    raw: bytes, kind: type[B], unknown_fields: Literal["refuse", "report"]
) -> tuple[B, tuple[str, ...]]:
    """The body, and the unknown fields that were left out of it.

    Raises `InvalidRequest` for broken JSON and wrong values, `UnsupportedField` for unknown fields.
    """
    try:
        try:
            body: B = _DECODERS[kind].decode(raw)
        except msgspec.ValidationError:
            return _without_unknown(raw, kind, unknown_fields)
    except msgspec.ValidationError as error:
        raise _wrong_value(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is no valid JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    return body, ()


def _without_unknown(
    raw: bytes, kind: type[B], unknown_fields: Literal["refuse", "report"]
) -> tuple[B, tuple[str, ...]]:
    """The slow way, for bodies that are wrong: find every unknown field, not only the first."""
    data = msgspec.json.decode(raw)
    unknown: dict[str, list[str]] = {}
    known_part = _known_part(kind, data, "", unknown)
    if unknown and unknown_fields == "refuse":
        path = next(iter(unknown))
        also = f" (nor {', '.join(list(unknown)[1:])})" if len(unknown) > 1 else ""
        raise UnsupportedField(
            f"This server knows no field {path!r}{also}.",
            field=path,
            remedy=did_you_mean(path.rpartition(".")[2], unknown[path]),
        )
    return msgspec.convert(known_part, kind, str_keys=True), tuple(unknown)


def _known_part(kind: Any, value: Any, path: str, unknown: dict[str, list[str]]) -> Any:
    """`value` without the fields that its type does not have; they go to `unknown` by path."""
    if isinstance(value, dict):
        struct = _struct_in(kind)
        if struct is None:
            return value
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        known = {}
        for name, item in value.items():
            inner = f"{path}.{name}" if path else name
            if name in fields:
                known[name] = _known_part(fields[name], item, inner, unknown)
            else:
                unknown[inner] = list(fields)
        return known
    if isinstance(value, list):
        return [_known_part(kind, v, f"{path}[{i}]", unknown) for i, v in enumerate(value)]
    return value


def _struct_in(kind: Any) -> type[Strict] | None:
    """The one struct that a type mentions, within unions, lists and `Annotated`."""
    if isinstance(kind, type) and issubclass(kind, Strict):
        return kind
    if isinstance(kind, type) and issubclass(kind, dict):
        return None
    return next((found for arg in get_args(kind) if (found := _struct_in(arg))), None)


def _wrong_value(error: msgspec.ValidationError) -> InvalidRequest:
    message = str(error)
    where = _WHERE.search(message)
    path = where.group(1) if where else ""
    what = message[: where.start()] if where else message
    missing = _MISSING.match(message)
    if missing:
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
    return InvalidRequest(f"{path or 'The body'}: {what}.", field=path or None)
