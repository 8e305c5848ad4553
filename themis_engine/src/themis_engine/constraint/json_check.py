"""Checking a finished document against its schema, by the `jsonschema` package.

Numbers are read as decimals, so that `multipleOf` is exact, and patterns run in an automaton of
ours, so that no expression takes exponential time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import jsonschema
import referencing
from jsonschema import validators
from jsonschema.exceptions import ValidationError

from themis_engine.constraint import regex
from themis_engine.constraint.automaton import Automaton
from themis_engine.constraint.formats import FORMATS

_MOST_DIGITS = 400

FORMAT_CHECKER = jsonschema.FormatChecker(formats=())
for _name, _format in FORMATS.items():
    FORMAT_CHECKER.checks(_name)(
        lambda value, conforms=_format.conforms: not isinstance(value, str) or conforms(value)
    )


def checker(schema: Any, draft: Any) -> Callable[[str], str | None]:
    """A function that says what is wrong with a text, or None if it conforms to the schema."""
    exact = read(json.dumps(schema))
    # An empty registry: whatever the schema says, nothing is fetched.
    kind = _exact(draft)
    validator = kind(exact, format_checker=FORMAT_CHECKER, registry=referencing.Registry())

    def check(text: str) -> str | None:
        try:
            document = read(text)
        except ValueError as error:
            return f"The output is no JSON: {error}."
        found = next(iter(validator.iter_errors(document)), None)
        return None if found is None else f"{found.json_path}: {found.message[:300]}"

    return check


def read(text: str) -> Any:
    """The JSON value of a text, its numbers exact. Raises `ValueError` for what is no JSON."""
    return json.loads(
        text, parse_float=_number, parse_int=_integer, parse_constant=_refuse_constant
    )


def _number(text: str) -> Decimal | float:
    try:
        return Decimal(text)
    except InvalidOperation:  # An exponent of 19 digits and more: infinite, or 0, to everybody.
        return float(text)


def _integer(text: str) -> int | Decimal:
    # Python refuses to read integers of more than 4300 digits: that takes quadratic time.
    return int(text) if len(text) <= _MOST_DIGITS else Decimal(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _is_integer(checker: Any, value: Any) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


@functools.cache
def _exact(draft: Any) -> Any:
    """The draft's validator, with exact numbers and patterns of ours."""
    return validators.extend(
        draft,
        validators={
            "multipleOf": _multiple_of,
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
        },
        type_checker=draft.TYPE_CHECKER.redefine("integer", _is_integer),
    )


@functools.lru_cache(maxsize=256)
def automaton(source: str) -> Automaton:
    """The automaton for a pattern somewhere in a text."""
    return Automaton(regex.parse(source, search=True, field="constraint"))


def _multiple_of(
    validator: Any, divisor: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "number"):
        return
    if isinstance(instance, float) or (
        isinstance(instance, Decimal) and abs(instance.adjusted()) > _MOST_DIGITS
    ):
        yield ValidationError(f"{instance} is too long a number to be divided")
    elif (Fraction(instance) / Fraction(divisor)).denominator != 1:
        yield ValidationError(f"{instance} is not a multiple of {divisor}")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not automaton(pattern).matches(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if automaton(pattern).matches(key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, additional: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    patterns = [automaton(pattern) for pattern in schema.get("patternProperties", {})]
    for key, value in instance.items():
        known = key in schema.get("properties", {}) or any(p.matches(key) for p in patterns)
        if not known:
            yield from validator.descend(value, additional, path=key)
