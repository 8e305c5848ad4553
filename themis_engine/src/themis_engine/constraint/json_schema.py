"""JSON Schema for llguidance: every keyword is honoured, an annotation, or refused by name.

llguidance ignores keywords that it does not know, and has defects of its own. So a schema is walked
here, keyword by keyword, and written anew with only those whose meaning it keeps; what reads
"llguidance" in a comment below was found in version 1.9.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jsonschema

from themis_core.errors import InvalidRequest
from themis_engine.constraint import charset as cs
from themis_engine.constraint import regex
from themis_engine.constraint.formats import FORMATS
from themis_engine.constraint.json_references import References

MAX_SOURCE = 256 * 1024
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_ITEMS = 4_096
MAX_LENGTH = 100_000
MAX_MULTIPLE = 10_000
_EXACT = 2**53
_SMALLEST = 1e-9

ANNOTATIONS = frozenset(
    {
        "$anchor", "$comment", "$id", "$schema", "$vocabulary", "contentEncoding",
        "contentMediaType", "contentSchema", "default", "deprecated", "description",
        "discriminator", "examples", "readOnly", "title", "writeOnly",
    }
)  # fmt: skip
"""Keywords that say nothing about which documents are valid."""

REFUSED = {
    name: remedy
    for names, remedy in {
        "$dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor": "Use $ref.",
        "not if then else": "Say what may be, by anyOf or enum.",
        "contains minContains maxContains": "Use prefixItems or items.",
        "dependentSchemas dependentRequired dependencies": "Use anyOf over the possible objects.",
        "unevaluatedItems unevaluatedProperties": "Use items and additionalProperties.",
        "propertyNames": "Use patternProperties with additionalProperties false.",
    }.items()
    for name in names.split()
}

# Strings hold no control characters but these: llguidance would write others as \u escapes, and
# with those allowed, a property can be written a second time under an escaped name, unchecked.
# Without them it drops what it cannot write from constants, so such constants are refused.
_WRITABLE = cs.complement(cs.charset([(0, 7), (11, 11), (14, 31), (127, 127)]))

_APPLICATORS = ("$ref", "enum", "const", "allOf", "anyOf", "oneOf")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_DRAFTS = {
    "https://json-schema.org/draft/2020-12/schema": jsonschema.Draft202012Validator,
    "https://json-schema.org/draft/2019-09/schema": jsonschema.Draft201909Validator,
    "http://json-schema.org/draft-07/schema": jsonschema.Draft7Validator,
}

# One blank, or one line break and its indentation: models write both, and none can go on for ever.
OPTIONS = {
    "whitespace_pattern": r"\x20|\n[\x20\t]{0,40}",
    "json_allowed_escapes": 'nrbtf\\"',
    "coerce_one_of": False,
    "lenient": False,
}


def refuse(path: str, message: str, remedy: str | None = None) -> InvalidRequest:
    """The error for what cannot be honoured; `path` leads to the keyword."""
    return InvalidRequest(f"{path}: {message}", field=path, remedy=remedy)


def draft_of(schema: Any, path: str) -> Any:
    """The class of the `jsonschema` package for the schema's `$schema`; 2020-12 without one."""
    declared = schema.get("$schema") if isinstance(schema, dict) else None
    if declared is None:
        return jsonschema.Draft202012Validator
    draft = _DRAFTS.get(str(declared).rstrip("#"))
    if draft is None:
        known = ", ".join(_DRAFTS)
        raise refuse(f"{path}.$schema", f"{declared!r} is no known draft.", f"Known: {known}.")
    return draft


def rewrite(schema: Any, path: str) -> dict[str, Any]:
    """The schema as llguidance understands it, with `x-guidance` options.

    Raises `InvalidRequest` that names the path of what cannot be honoured.
    """
    _check_size(schema, path)
    draft = draft_of(schema, path)
    _check_against_metaschema(schema, draft, path)
    writer = _Writer(schema, path)
    root = writer.write(schema, path)
    definitions = {}
    while writer.references.pending:
        name, target, where = writer.references.pending.pop()
        definitions[name] = writer.write(target, where)
    writer.references.check(root, definitions, path)
    whole = root if isinstance(root, dict) else {"allOf": [root]}
    if definitions:
        # `#` itself may be referred to, and the root must not carry the definitions twice.
        whole = {**whole, "$defs": definitions}
    return {"x-guidance": OPTIONS, **whole}


def _check_size(schema: Any, path: str) -> None:
    """Bounds on nodes, depth and text, before anything recurses over them."""
    if not isinstance(schema, dict | bool):
        raise refuse(path, "a JSON Schema must be an object or a boolean.")
    level: list[Any] = [schema]
    nodes = text = 0
    for _ in range(MAX_DEPTH + 1):
        nodes += len(level)
        if nodes > MAX_NODES:
            raise refuse(path, f"the schema has more than {MAX_NODES} values.")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if not all(isinstance(key, str) for key in value):
                    raise refuse(path, "the schema has a key that is no string.")
                text += sum(map(len, value))
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            elif isinstance(value, str):
                text += len(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise refuse(path, f"the schema holds {value}, which is no JSON number.")
            elif isinstance(value, int) and value.bit_length() > 1000:
                raise refuse(path, "the schema holds an integer of more than 300 digits.")
            elif not (value is None or isinstance(value, bool | int | float)):
                raise refuse(path, f"the schema holds a {type(value).__name__}.")
        if text > MAX_SOURCE:
            raise refuse(path, f"the schema is longer than {MAX_SOURCE} characters.")
        level = below
        if not level:
            return
    raise refuse(path, f"the schema is nested more than {MAX_DEPTH} deep.")


def _check_against_metaschema(schema: Any, draft: Any, path: str) -> None:
    error = next(iter(draft(draft.META_SCHEMA).iter_errors(schema)), None)
    if error is not None:
        where = ".".join([path, *map(str, error.absolute_path)])
        raise refuse(where, f"this is no valid JSON Schema: {error.message[:200]}.")


class _Writer:
    """Walks a schema and writes it anew."""

    def __init__(self, schema: Any, path: str) -> None:
        self.root_path = path
        self.references = References(schema, path)
        self._multiples: set[Fraction] = set()

    def write(self, schema: Any, path: str) -> Any:
        if isinstance(schema, bool):
            return schema
        plain: dict[str, Any] = {}
        applied: dict[str, Any] = {}
        extra: list[Any] = []
        for name, value in schema.items():
            where = f"{path}.{name}"
            if name in ANNOTATIONS or self._is_note(name):
                if name == "$id" and path != self.root_path:
                    raise refuse(where, "only the root of a schema may have an $id.")
                continue
            if name in ("$defs", "definitions"):
                continue  # What nobody refers to has no effect; the rest is written when used.
            if name in _APPLICATORS:
                applied[name] = self._applied(name, value, where)
            elif name == "format":
                # Like `pattern`, it concerns strings only; one without a type says so by itself.
                typed = {"type": "string"} if schema.get("type") == "string" else {}
                extra.append({**typed, "pattern": self._format(value, where)})
            else:
                self._keyword(name, value, where, schema, plain)
        self._check_minimum_of_properties(schema, path)
        # llguidance reads keywords in order, and forgets patternProperties when an applicator
        # stands between them and additionalProperties; so applicators come last.
        if extra:
            applied["allOf"] = [*applied.get("allOf", []), *extra]
        return {**plain, **applied}

    @staticmethod
    def _is_note(name: str) -> bool:
        return name.startswith("x-") and name != "x-guidance"

    def _applied(self, name: str, value: Any, where: str) -> Any:
        if name == "$ref":
            return self.references.name(value, where)
        if name == "const":
            return self._constant(value, where)
        if name == "enum":
            return [self._constant(v, f"{where}.{i}") for i, v in enumerate(value)]
        return [self.write(v, f"{where}.{i}") for i, v in enumerate(value)]

    def _keyword(
        self, name: str, value: Any, where: str, schema: dict[str, Any], out: dict[str, Any]
    ) -> None:
        if name in REFUSED:
            raise refuse(where, f"the keyword {name} cannot be honoured.", REFUSED[name])
        if name == "uniqueItems":
            if value and schema.get("maxItems", 2) > 1:
                raise refuse(where, "uniqueItems cannot be honoured.", "Leave it out, or false.")
            return
        handler = self._handlers().get(name)
        if handler is None:
            raise refuse(
                where,
                f"the keyword {name} is not known, so it cannot be honoured.",
                "Leave it out, or begin its name with x- if it is a note.",
            )
        handler(name, value, where, out)

    def _handlers(self) -> dict[str, Callable[[str, Any, str, dict[str, Any]], None]]:
        return {
            "type": self._copy,
            "required": self._copy,
            "properties": self._named_schemas,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._schema,
            "items": self._items,
            "prefixItems": self._schemas,
            "additionalItems": self._additional_items,
            "pattern": self._pattern,
            "multipleOf": self._multiple_of,
            **dict.fromkeys(("minItems", "maxItems", "minProperties"), self._count(MAX_ITEMS)),
            **dict.fromkeys(("minLength", "maxLength"), self._count(MAX_LENGTH)),
            "maxProperties": self._count(MAX_ITEMS),
            **dict.fromkeys(
                ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), self._bound
            ),
        }

    def _copy(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        if name == "required":
            for key in value:
                self._check_name(key, where)
        out[name] = value

    def _schema(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        out[name] = self.write(value, where)

    def _schemas(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        out[name] = [self.write(v, f"{where}.{i}") for i, v in enumerate(value)]

    def _items(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        """Up to draft 2019-09, an array of schemas is what is called `prefixItems` today."""
        if isinstance(value, list):
            self._schemas("prefixItems", value, where, out)
        else:
            out[name] = self.write(value, where)

    def _additional_items(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        raise refuse(where, f"the keyword {name} cannot be honoured.", "Use prefixItems and items.")

    def _named_schemas(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        for key in value:
            self._check_name(key, where)
        out[name] = {key: self.write(v, f"{where}.{key}") for key, v in value.items()}

    def _pattern_properties(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        out[name] = {
            self._expression(key, f"{where}.{key}"): self.write(v, f"{where}.{key}")
            for key, v in value.items()
        }

    def _pattern(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        out[name] = self._expression(value, where)

    def _expression(self, source: str, where: str) -> str:
        node = regex.restrict(regex.parse(source, search=True, field=where), _WRITABLE)
        if node is None:
            raise refuse(where, f"{source!r} needs control characters, which are not written.")
        return f"^(?:{regex.to_rust(node)})$"

    def _format(self, value: str, where: str) -> str:
        known = FORMATS.get(value)
        if known is None:
            names = ", ".join(FORMATS)
            raise refuse(where, f"the format {value!r} cannot be honoured.", f"Known: {names}.")
        return self._expression(known.pattern, where)

    def _count(self, limit: int) -> Callable[[str, Any, str, dict[str, Any]], None]:
        def write(name: str, value: Any, where: str, out: dict[str, Any]) -> None:
            if value > limit:
                raise refuse(where, f"{name} is {value}, but must be at most {limit}.")
            out[name] = int(value)

        return write

    def _bound(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        self._check_number(value, where)
        out[name] = value

    def _multiple_of(self, name: str, value: Any, where: str, out: dict[str, Any]) -> None:
        # llguidance finds the decimal digits by multiplying floats, which can go wrong; it merges
        # several in 32-bit integers without regard for overflow; and their automaton has as many
        # states as their least common multiple, which no fuel bounds while it is built.
        digits, scaled = 0, float(value)
        while scaled % 1 and digits < 6:
            digits, scaled = digits + 1, scaled * 10
        if scaled != Fraction(repr(value)) * 10**digits:
            raise refuse(where, f"multipleOf {value!r} has too many digits.")
        self._multiples.add(Fraction(repr(value)))
        unit = math.lcm(*(m.denominator for m in self._multiples))
        if math.lcm(*(int(m * unit) for m in self._multiples)) > MAX_MULTIPLE:
            raise refuse(
                where,
                f"the least common multiple of what multipleOf demands is above {MAX_MULTIPLE}.",
            )
        out[name] = value

    def _check_number(self, value: Any, where: str) -> None:
        """llguidance computes in floats, and writes bounds out digit by digit."""
        if abs(value) >= _EXACT or 0 < abs(value) < _SMALLEST:
            limits = f"0, or between {_SMALLEST} and {_EXACT} either way"
            raise refuse(
                where,
                f"{value!r} is too large or too small a number to be exact.",
                f"Use {limits}.",
            )

    def _constant(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            self._check_text(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._check_number(value, where)
        elif isinstance(value, list | tuple):
            return [self._constant(v, f"{where}.{i}") for i, v in enumerate(value)]
        elif isinstance(value, dict):
            for key in value:
                self._check_name(key, where)
            return {key: self._constant(v, f"{where}.{key}") for key, v in value.items()}
        return value

    def _check_text(self, text: str, where: str) -> None:
        if not all(cs.contains(_WRITABLE, c) for c in text):
            raise refuse(where, f"{text!r} holds control characters or surrogates.")

    def _check_name(self, name: str, where: str) -> None:
        self._check_text(name, where)

    def _check_minimum_of_properties(self, schema: dict[str, Any], path: str) -> None:
        """Names that are not listed may come twice (the grammar keeps no count of them)."""
        least = schema.get("minProperties", 0)
        if least > len(set(schema.get("required", []))) + 1:
            raise refuse(
                f"{path}.minProperties",
                f"minProperties is {least}, more than can be enforced here.",
                "List the properties under required, all but one at most.",
            )


def source(schema: Any, path: str) -> str:
    """llguidance's grammar for a schema. Raises `InvalidRequest`."""
    try:
        return json.dumps({"grammars": [{"json_schema": rewrite(schema, path)}]})
    except RecursionError as error:
        raise refuse(path, "the schema is nested too deeply.") from error
