"""What the output must be: `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from themis_core.errors import InvalidRequest
from themis_core.messages import Constraint
from themis_openai_server.body import ResponseFormat, StructuredOutputs

_ANY_OBJECT = {"type": "object"}
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+\s*::=", re.MULTILINE)


def constraint_of(
    form: ResponseFormat | None, structured: StructuredOutputs | None
) -> Constraint | None:
    """The one constraint that is asked for. Raises `InvalidRequest` if there are several."""
    first, second = _of_format(form), _of_structured(structured)
    if first is not None and second is not None:
        raise InvalidRequest(
            "response_format and structured_outputs exclude each other.",
            field="structured_outputs",
        )
    return first or second


def _of_format(form: ResponseFormat | None) -> Constraint | None:
    if form is None:
        return None
    field = "response_format.json_schema"
    if form.type == "json_schema":
        if form.json_schema is None:
            raise InvalidRequest(f"{field} is missing.", field=field)
        return Constraint(kind="json_schema", value=form.json_schema.schema)
    if form.json_schema is not None:
        raise InvalidRequest(f"{field} belongs to type json_schema.", field=field)
    return None if form.type == "text" else Constraint(kind="json_schema", value=_ANY_OBJECT)


def _of_structured(structured: StructuredOutputs | None) -> Constraint | None:
    if structured is None:
        return None
    found = {
        name: value
        for name in structured.__struct_fields__
        if (value := getattr(structured, name)) not in (None, False)
    }
    if len(found) != 1:
        given = ", ".join(found) or "nothing"
        raise InvalidRequest(
            f"structured_outputs takes exactly one kind of constraint; given: {given}.",
            field="structured_outputs",
            remedy=f"Give one of {', '.join(structured.__struct_fields__)}.",
        )
    ((name, value),) = found.items()
    if name == "json_object":
        return Constraint(kind="json_schema", value=_ANY_OBJECT)
    if name == "json":
        return Constraint(kind="json_schema", value=_schema(value))
    if name == "grammar":
        return Constraint(kind="gbnf" if _GBNF_RULE.search(value) else "lark", value=value)
    kinds: dict[str, Literal["regex", "choice", "lark", "gbnf"]] = {
        "regex": "regex",
        "choice": "choice",
        "lark": "lark",
        "gbnf": "gbnf",
    }
    return Constraint(kind=kinds[name], value=value)


def _schema(value: Any) -> Any:
    """vLLM takes the schema as text too."""
    if not isinstance(value, str):
        return value
    field = "structured_outputs.json"
    try:
        schema = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{field} is no valid JSON: {error}.", field=field) from error
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{field} is no JSON object.", field=field)
    return schema
