"""Hypothesis strategies for JSON Schemas (draft 2020-12) and JSON values.

Most schemas have a document that satisfies them, and most use only what constrained generation
commonly can do; some use more, so that an engine must refuse them. Names and texts hold characters
of several bytes, quotes and backslashes; schemas refer to one another, and to themselves.
"""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any] | bool

FORMATS = (
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "json-pointer",
)

PATTERNS = (
    "^[a-c]{2,4}$",
    "^(foo|bar|bäz)$",
    "^[A-Z][a-z]{0,3}$",
    r"^\d{1,3}(\.\d{2})?$",
    r"^[^\s,]{1,6}$",
    r"^\w{1,3}-\w{1,3}$",
    "é|ü",
    "^x",
    "z$",
    r"^\$?[0-9]{1,4}€?$",
    '^["\\\\/]{1,3}$',
    r"^\S{2}\D$",
    "^(?:a|b*)?c+?$",
)
"""Expressions that Python's `re` and ECMA-262 read alike, and that are regular."""

REFUSABLE: tuple[dict[str, Any], ...] = (
    {"not": {"type": "null"}},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"uniqueItems": True, "type": "array"},
    {"contains": {"type": "integer"}, "type": "array"},
    {"propertyNames": {"maxLength": 3}, "type": "object"},
    {"dependentRequired": {"a": ["b"]}, "type": "object"},
    {"dependentSchemas": {"a": {"required": ["b"]}}, "type": "object"},
    {"unevaluatedProperties": False, "type": "object"},
    {"unevaluatedItems": False, "type": "array"},
    {"type": "string", "format": "iri"},
    {"type": "string", "pattern": "^(?!a)b"},
    {"type": "string", "pattern": r"(a)\1"},
    {"type": "integer", "minimum": "3"},
    {"type": "object", "minProperties": 3},
    {"$ref": "https://example.com/schema"},
    {"$dynamicRef": "#node"},
    {"nullable": True, "type": "string"},
)
"""Schemas whose meaning few engines can enforce while they generate."""

_TEXT = st.text(
    st.one_of(
        st.sampled_from("abcxyz019 _-\"\\/\n\t'{}[],:"),
        st.sampled_from("éßдж日本🎉\u2028\u0301"),
    ),
    max_size=6,
)
_NAMES = st.sampled_from(
    ("a", "b", "id", "name", "größe", "日本", "🎉", 'q"\\', "", "x y", "tab\t")
)
_BOUNDS = st.one_of(st.integers(-1000, 1000), st.integers(-(10**5), 10**5).map(lambda n: n / 1000))
_DEFINITIONS = ("node", "leaf", "grün/~x")


@functools.cache
def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value: small, finite numbers and texts without control characters."""
    scalars = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**6), 10**6),
        st.integers(-1000, 1000).map(lambda n: n / 8),
        _TEXT,
    )
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)
        ),
        max_leaves=4,
    )


@st.composite
def string_schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Texts: plain, by length, by pattern, by format, or by two of these."""
    schema: dict[str, Any] = {"type": "string"}
    kind = draw(st.sampled_from(("plain", "length", "pattern", "format", "both")))
    if kind in ("length", "both"):
        low = draw(st.integers(0, 4))
        schema |= draw(
            st.sampled_from(
                ({"minLength": low}, {"maxLength": low + 2}, {"minLength": low, "maxLength": low})
            )
        )
    if kind in ("pattern", "both"):
        schema["pattern"] = draw(st.sampled_from(PATTERNS))
    if kind == "format":
        schema["format"] = draw(st.sampled_from(FORMATS))
    return schema


@st.composite
def number_schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Numbers and integers, with bounds of either kind, and multiples."""
    schema: dict[str, Any] = {"type": draw(st.sampled_from(("number", "integer")))}
    if draw(st.booleans()):
        schema[draw(st.sampled_from(("minimum", "exclusiveMinimum")))] = draw(_BOUNDS)
    if draw(st.booleans()):
        schema[draw(st.sampled_from(("maximum", "exclusiveMaximum")))] = draw(_BOUNDS)
    if draw(st.integers(0, 3)) == 0:
        schema["multipleOf"] = draw(st.sampled_from((1, 2, 3, 7, 10, 12, 0.5, 0.25, 0.1, 0.01)))
    return schema


@functools.cache
def _scalars(names: tuple[str, ...]) -> st.SearchStrategy[Schema]:
    plain = st.sampled_from(("null", "boolean", "integer", "number", "string"))
    options: list[st.SearchStrategy[Any]] = [
        string_schemas(),
        number_schemas(),
        plain.map(lambda name: {"type": name}),
        st.lists(plain, min_size=1, max_size=3, unique=True).map(lambda names: {"type": names}),
        json_values().map(lambda value: {"const": value}),
        st.lists(json_values(), min_size=1, max_size=5).map(lambda values: {"enum": values}),
        st.booleans(),
        st.just({"description": "anything at all", "x-note": 1}),
    ]
    if names:
        reference = st.sampled_from(names).map(_reference)
        options += [reference, reference]
    return st.one_of(options)


def _reference(name: str) -> dict[str, Any]:
    escaped = name.replace("~", "~0").replace("/", "~1")
    return {"$ref": f"#/$defs/{escaped}"}


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    names = draw(st.lists(_NAMES, max_size=4, unique=True))
    if names:
        schema["properties"] = {name: draw(inner) for name in names}
        required = [name for name in names if draw(st.booleans())]
        if required:
            schema["required"] = required
    rest = draw(st.sampled_from(("open", "closed", "closed", "typed", "patterns", "counted")))
    if rest == "closed":
        schema["additionalProperties"] = False
    elif rest == "typed":
        schema["additionalProperties"] = draw(inner)
    elif rest == "patterns":
        schema["patternProperties"] = {"^[a-f]{1,2}$": draw(inner), "^i": draw(inner)}
        schema["additionalProperties"] = draw(st.sampled_from((False, {"type": "null"})))
    elif rest == "counted":
        schema.pop("properties", None)
        schema["maxProperties"] = draw(st.integers(1, 4))
        schema["minProperties"] = draw(st.integers(0, 1))
        schema["additionalProperties"] = draw(inner)
        if len(schema.get("required", ())) > schema["maxProperties"]:
            del schema["required"]
    return schema


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    prefix = draw(st.lists(inner, max_size=3))
    if prefix:
        schema["prefixItems"] = prefix
    if draw(st.booleans()):
        schema["items"] = draw(st.one_of(inner, st.just(False)))
    if draw(st.booleans()):
        schema["minItems"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["maxItems"] = draw(st.integers(schema.get("minItems", 0), 4))
    return schema


@st.composite
def _combinations(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> dict[str, Any]:
    kind = draw(st.sampled_from(("anyOf", "anyOf", "oneOf", "tagged", "allOf", "beside")))
    if kind == "tagged":
        return {"oneOf": [_tagged(tag, draw(inner)) for tag in ("cat", "dög")]}
    if kind == "allOf":
        parts = draw(
            st.one_of(
                st.lists(number_schemas(), min_size=1, max_size=2),
                st.lists(string_schemas(), min_size=1, max_size=2),
                st.lists(_objects(inner), min_size=2, max_size=2),
                st.lists(inner, min_size=1, max_size=2),
            )
        )
        return {"allOf": parts}
    branches = draw(st.lists(inner, min_size=1, max_size=3))
    if kind == "beside":  # Keywords on both sides of an applicator, in either order.
        first, second = draw(_objects(inner)), {"anyOf": branches}
        return second | first if draw(st.booleans()) else first | second
    return {kind: branches}


def _tagged(tag: str, schema: Schema) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"kind": {"const": tag}, "value": schema},
        "required": ["kind"],
        "additionalProperties": False,
    }


@functools.cache  # Building strategies costs more than drawing from them.
def _nested(names: tuple[str, ...], leaves: int) -> st.SearchStrategy[Schema]:
    return st.recursive(
        _scalars(names),
        lambda inner: st.one_of(_objects(inner), _arrays(inner), _combinations(inner)),
        max_leaves=leaves,
    )


@functools.cache
def _composite(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    inner = _nested(names, 6)
    return st.one_of(_objects(inner), _arrays(inner), _combinations(inner))


@st.composite
def json_schemas(draw: st.DrawFn, *, refusable: bool = True) -> dict[str, Any]:
    """A schema, with definitions that may refer to each other and to themselves.

    With `refusable`, some have a part of `REFUSABLE`, are not valid, or have no document.
    """
    names = _DEFINITIONS[: draw(st.integers(0, len(_DEFINITIONS)))]
    if draw(st.integers(0, 5)) != 3:
        root = draw(_composite(names))
    else:
        drawn = draw(_scalars(names))
        root = dict(drawn) if isinstance(drawn, dict) else {"title": "a boolean", "anyOf": [drawn]}
    if names:
        root["$defs"] = {name: draw(_nested(names, 4)) for name in names}
    if refusable and draw(st.integers(0, 20)) == 13:  # Hypothesis likes the ends of a range.
        part = draw(st.sampled_from(REFUSABLE))
        return {"type": "object", "properties": {"part": part, "rest": root}, "required": ["part"]}
    return root
