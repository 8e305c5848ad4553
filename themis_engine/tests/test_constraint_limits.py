"""Hostile constraints: refused, or every step stays within the limits that llguidance counts."""

from __future__ import annotations

from typing import Any

import jsonschema
import numpy as np
import pytest

from themis_core.errors import InvalidRequest
from themis_core.messages import Constraint
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.constraint import ConstraintCompiler, Grammar, Matcher, json_check
from themis_engine.constraint.compiler import limits


def nested(depth: int) -> Any:
    schema: dict[str, Any] = {"type": "array"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(depth: int) -> dict[str, Any]:
    defs = {
        f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]}
        for i in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{depth}": {"type": "string"}}}


def compiled(kind: Any, value: Any) -> Grammar:
    compiler = ConstraintCompiler(ByteTokenizer(), ByteTokenizer.VOCAB_SIZE)
    return compiler.compile(Constraint(kind=kind, value=value))


def walk(matcher: Matcher, text: str) -> None:
    for byte in text.encode():
        matcher.prepare()
        matcher.advance(byte)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("regex", "((a{1,100}){1,100}){1,100}", "too large"),
        ("regex", "(" * 10_000, "nested"),
        ("regex", "a" * 10**6, "longer"),
        ("gbnf", "root ::= " + "(" * 10_000, "nested"),
        ("gbnf", "root ::= x{1,100000}\nx ::= [a-z]", "repetitions"),
        ("gbnf", "# " + "x" * 10**6, "longer"),
        ("lark", "start: " + "(" * 5_000 + '"a"' + ")" * 5_000, "nested"),
        ("lark", 'start: "a"' + " " * 10**6, "longer"),
        ("lark", "start: a\na: b\nb: a", "honoured"),
        ("lark", "start: %json " + '{"items": ' * 5_000, "JSON"),
        ("choice", ["x" * 10] * 100_000, "between 1 and"),
        ("json_schema", nested(100), "nested more than"),
        ("json_schema", nested(50_000), "nested more than"),
        ("json_schema", {"enum": ["x" * 1000] * 1000}, "longer"),
        ("json_schema", {"enum": list(range(10**5))}, "values"),
        ("json_schema", {"type": "array", "maxItems": 10**9}, "maxItems"),
        ("json_schema", {"type": "array", "minItems": 10**9}, "minItems"),
        ("json_schema", {"type": "object", "maxProperties": 10**9}, "maxProperties"),
        ("json_schema", {"type": "string", "maxLength": 10**9}, "maxLength"),
        ("json_schema", {"type": "string", "minLength": 10**9}, "minLength"),
        ("json_schema", {"type": "integer", "multipleOf": 999_983}, "multipleOf"),
        ("json_schema", {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "multiple"),
        ("json_schema", {"type": "number", "minimum": 1e-300}, "minimum"),
        ("json_schema", {"type": "integer", "maximum": 2**60}, "maximum"),
        ("json_schema", {"type": "string", "pattern": "(a{1,200}){1,200}"}, "too large"),
        ("json_schema", {"$ref": "#"}, "back to itself"),
        ("json_schema", {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "back to itself"),
        ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"},
                         "b": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "back to itself"),
        ("json_schema", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "never ends"),
        ("json_schema", doubling(30), "written out"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(kind: Any, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiled(kind, value)
    assert said in str(caught.value)
    assert str(caught.value.field).startswith("constraint")
    assert len(str(caught.value)) < 2000


AMBIGUOUS = [
    ("lark", 'start: s\ns: s s | s s s | "a" | "b"'),
    ("lark", 'start: s\ns: | s s s | "a" | "a" s "a"'),
    ("gbnf", "root ::= s\ns ::= s s | s s s | [a-z]"),
    ("gbnf", "root ::= x x x x x x x x\nx ::= [a-z]* | x [a-z]* x"),
    ("regex", "(.*a.{200}|.*b.{200}|.*c.{201})"),
    ("regex", r"(\w{1,100}\s?){1,100}"),
    ("lark", "start: A\nA: /(?s:.*)/ & ~/(?s:.*)a(?s:.{60})b(?s:.*)/"),
    ("json_schema", {"type": "string", "pattern": "^(a|b)*a(a|b){30}$", "maxLength": 500}),
    ("json_schema", {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/x"}}] * 30,
                     "$defs": {"x": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/x"}},
                                               {"type": "array"}, {"type": "integer"}]}}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), AMBIGUOUS)
def test_steps_stay_within_their_fuel(kind: Any, value: Any) -> None:
    """A walk either goes on or ends in an error of its own; another one is not concerned."""
    try:
        grammar = compiled(kind, value)
    except InvalidRequest:
        return
    rng = np.random.default_rng(3)
    matcher = grammar.matcher()
    failure: InvalidRequest | None = None
    for _ in range(150):
        row = rng.standard_normal(ByteTokenizer.VOCAB_SIZE, np.float32)
        row[[ord("["), ord("a"), ord("b")]] += 3
        try:
            matcher.mask(row)
            if matcher.must_end:
                break
            row[ByteTokenizer.END] = -np.inf
            matcher.advance(int(row.argmax()))
        except InvalidRequest as error:
            failure = error
            break
    if failure is not None:
        assert failure.field == "constraint"
        with pytest.raises(InvalidRequest, match="cannot be followed any further"):
            matcher.prepare()
    other = grammar.matcher()
    other.mask(np.zeros(ByteTokenizer.VOCAB_SIZE, np.float32))


def test_an_ambiguous_grammar_runs_into_its_limit() -> None:
    """Without a limit this takes seconds a step; llguidance counts items, so this is no timing."""
    matcher = compiled("gbnf", "root ::= s\ns ::= s s | s s s | [a-z]").matcher()
    with pytest.raises(InvalidRequest, match="cannot be followed"):
        walk(matcher, "a" * 500)


def test_the_failure_of_one_walk_does_not_reach_another() -> None:
    """llguidance's copies share a lexer, and its errors; each walk here stands for itself."""
    grammar = compiled("regex", r"a|(\w{1,100}\s?){1,100}!")
    innocent, guilty = grammar.matcher(), grammar.matcher()
    innocent.advance(ord("a"))
    with pytest.raises(InvalidRequest, match="cannot be followed"):
        walk(guilty, "b" * 2000)
    assert innocent.may_end
    innocent.prepare()
    innocent.advance(ord("a"))
    for matcher in (innocent, grammar.matcher()):
        row = np.zeros(ByteTokenizer.VOCAB_SIZE, np.float32)
        matcher.mask(row)
        assert np.isfinite(row[ord("a")])


def test_limits_are_below_the_defaults_of_llguidance() -> None:
    for kind in ("lark", "json_schema"):
        given = limits(kind)
        assert given.step_max_items <= 20_000
        assert given.step_lexer_fuel <= 200_000
        assert given.max_lexer_states <= 30_000
        assert given.max_grammar_size <= 150_000


def test_a_large_schema_is_no_hostile_one() -> None:
    fields = {f"field {i}": {"type": "string", "pattern": f"^a{i}.*$"} for i in range(500)}
    grammar = compiled("json_schema", {"type": "object", "properties": fields})
    matcher = grammar.matcher()
    text = '{"field 7": "a7x", "field 499": "a499"}'
    for byte in text.encode():
        row = np.zeros(ByteTokenizer.VOCAB_SIZE, np.float32)
        matcher.mask(row)
        assert np.isfinite(row[byte])
        matcher.advance(byte)
    assert matcher.may_end
    assert grammar.check(text) is None


def test_checking_is_linear_where_backtracking_is_exponential() -> None:
    grammar = compiled("json_schema", {"type": "string", "pattern": "^(a+)+b$"})
    assert grammar.check('"' + "a" * 3000 + '"')
    assert grammar.check('"' + "a" * 3000 + 'b"') is None
    assert compiled("regex", "(a|a)*(a|a)*b").check("a" * 3000)


@pytest.mark.parametrize(
    ("schema", "text", "fine"),
    [
        ({"type": "number"}, "1e99999999999999999999", True),
        ({"type": "number"}, "1e-99999999999999999999", True),
        ({"type": "integer"}, "9" * 10_000, True),
        ({"type": "number", "multipleOf": 0.5}, "1e999999", False),
        ({"type": "number", "multipleOf": 0.1}, "0.3", True),
        ({"type": "number", "multipleOf": 0.1}, "0.35", False),
        ({"type": "number", "maximum": 1.5}, "1.50000000000000000000001", False),
        ({}, "[" * 100_000, False),
        ({}, "[" * 5_000 + "]" * 5_000, False),
        ({}, "NaN", False),
        ({}, '{"a": 1,}', False),
    ],
)
def test_checking_survives_what_readers_do_not(schema: Any, text: str, fine: bool) -> None:
    problem = compiled("json_schema", schema).check(text)
    assert (problem is None) == fine


def test_checking_fetches_nothing() -> None:
    check = json_check.checker(
        {"$ref": "https://example.com/x.json"}, jsonschema.Draft202012Validator
    )
    with pytest.raises(Exception, match=r"example\.com"):
        check("1")
