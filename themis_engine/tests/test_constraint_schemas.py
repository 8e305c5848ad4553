"""A thousand generated schemas, sampled hot: refused by name, or every finished output conforms."""

from __future__ import annotations

import decimal
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from themis_core.errors import InvalidRequest
from themis_core.messages import Constraint
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.constraint import ConstraintCompiler
from themis_engine.constraint.json_check import FORMAT_CHECKER, read
from themis_engine.hf_tokenizer import HfTokenizer
from themis_engine.runner import Tokenizer
from themis_testkit.json_schemas import json_schemas
from themis_tiny_model import path

SCHEMAS = {"bundled": 1400, "bytes": 250}
"""Drawn; some are the same."""

LIMIT = 250


class Player:
    """Samples constrained outputs at temperature 1 from random logits that lean to ending."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer = tokenizer
        self.compiler = ConstraintCompiler(tokenizer, size)
        self.bias = np.zeros(size, np.float32)
        for token in range(size):
            if token in tokenizer.end_tokens:
                self.bias[token] = 6
            elif tokenizer.token_bytes(token)[:1] in (b'"', b"}", b"]"):
                self.bias[token] = 5
            elif tokenizer.token_bytes(token)[:1] in (b" ", b"\n", b"\t", b","):
                self.bias[token] = -3

    def play(self, schema: Any, seed: int) -> tuple[str | None, str | None]:
        """A finished output and what the engine's own check says of it; (None, None) if cut."""
        grammar = self.compiler.compile(Constraint(kind="json_schema", value=schema))
        matcher = grammar.matcher()
        rng = np.random.default_rng(seed)
        data = bytearray()
        for _ in range(LIMIT):
            noise = rng.standard_exponential(len(self.bias), np.float32)
            row = self.bias - np.log(np.maximum(noise, 1e-30))
            matcher.mask(row)
            token = int(row.argmax())
            assert np.isfinite(row[token])
            matcher.advance(token)
            data += self.tokenizer.token_bytes(token)
            if token in self.tokenizer.end_tokens or matcher.must_end:
                text = data.decode()  # Strict: a finished output is whole characters.
                return text, grammar.check(text)
        return None, None


def conforms(schema: Any, text: str) -> list[str]:
    """What the `jsonschema` package, as it comes, says of an output; numbers exact."""
    kind = jsonschema.Draft202012Validator
    with decimal.localcontext(prec=1000):
        found: list[str] = []
        for formats in (kind.FORMAT_CHECKER, FORMAT_CHECKER):
            validator = kind(read(json.dumps(schema)), format_checker=formats)
            try:
                found += [error.message for error in validator.iter_errors(read(text))]
            except (TypeError, decimal.InvalidOperation):
                # The package cannot divide a number like 1e9999; the engine's own check does.
                assert re.search(r"\d[eE][+-]?\d{4}", text)
        return found


def keyword(error: InvalidRequest) -> str:
    """The last word of the field, or what llguidance said, for counting."""
    assert error.field is not None
    assert error.field.startswith("constraint.value")
    last = error.field.rpartition(".")[2]
    return last if last != "value" else error.message.split(":", 1)[-1].strip()[:60]


def players() -> dict[str, Player]:
    bundled = HfTokenizer(path("hf"))
    size = json.loads((path("hf") / "config.json").read_text())["vocab_size"]
    return {"bundled": Player(bundled, size), "bytes": Player(ByteTokenizer(), 257)}


@pytest.mark.endurance
@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_refused_by_name_or_honoured(name: str, tell: Callable[[str], None]) -> None:
    player = players()[name]
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    seen: set[str] = set()

    @settings(
        max_examples=SCHEMAS[name],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(json_schemas(), st.integers(0, 2**32))
    @example({"type": "string", "const": "\n"}, 0)
    def run(schema: Any, seed: int) -> None:
        seen.add(json.dumps(schema))
        try:
            text, problem = player.play(schema, seed)
        except InvalidRequest as error:
            counts["refused"] += 1
            refused[keyword(error)] += 1
            return
        if text is None:
            counts["cut"] += 1
            return
        counts["finished"] += 1
        problems = conforms(schema, text)
        assert problems == [], (schema, text)
        assert problem is None, (schema, text)

    run()
    tell(f"{dict(counts)}, {len(seen)} different schemas; {dict(sorted(refused.items()))}")
    assert len(seen) > SCHEMAS[name] * 0.7
    assert counts["finished"] > SCHEMAS[name] / 2
    assert counts["cut"] < SCHEMAS[name] / 20


@pytest.mark.parametrize(
    ("schema", "field", "said"),
    [
        ({"type": "object", "properties": {"x": {"not": {}}}}, "properties.x.not", "not"),
        ({"items": {"format": "iri"}}, "items.format", "'iri'"),
        ({"anyOf": [{}, {"pattern": "(?=a)"}]}, "anyOf.1.pattern", "look-ahead"),
        ({"patternProperties": {"(a": {}}}, "patternProperties.(a", "closing bracket"),
        ({"required": [1]}, "required.0", "valid JSON Schema"),
        ({"minimum": "3"}, "minimum", "valid JSON Schema"),
        ({"type": "int"}, "type", "valid JSON Schema"),
        ({"nullable": True}, "nullable", "not known"),
        ({"x-guidance": {"lenient": True}}, "x-guidance", "not known"),
        ({"uniqueItems": True}, "uniqueItems", "uniqueItems"),
        ({"$ref": "other.json"}, "$ref", "stay within"),
        ({"$ref": "#/$defs/none"}, "$ref", "leads nowhere"),
        ({"$dynamicRef": "#x"}, "$dynamicRef", "Use $ref"),
        ({"properties": {"a": {"$id": "x"}}}, "properties.a.$id", "$id"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$schema", "draft"),
        ({"const": "a\x01"}, "const", "control characters"),
        ({"enum": [1, 2**60]}, "enum.1", "too large"),
        ({"minProperties": 2}, "minProperties", "more than can be enforced"),
        ({"minLength": 3, "maxLength": 2, "type": "string"}, "", "minLength (3)"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "", "exclude each other"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "", "'a'"),
        (False, "", "Unsatisfiable"),
        ([], "", "object or a boolean"),
        ({"const": float("nan")}, "", "no JSON number"),
        ({1: 2}, "", "no string"),
        ({"default": 10**5000}, "", "300 digits"),
        ({"multipleOf": 10**200}, "multipleOf", "multiple"),
        ({"multipleOf": 1e-200}, "multipleOf", "digits"),
    ],
)
def test_refusals_name_the_keyword(schema: Any, field: str, said: str) -> None:
    compiler = ConstraintCompiler(ByteTokenizer(), 257)
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(Constraint(kind="json_schema", value=schema))
    assert caught.value.field == f"constraint.value.{field}".rstrip(".")
    assert said in str(caught.value)


def test_a_property_cannot_be_written_a_second_time_under_an_escaped_name() -> None:
    """llguidance 1.9.1 lets "\\u0061" through as a further property, with another schema."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    compiler = ConstraintCompiler(ByteTokenizer(), 257)
    matcher = compiler.compile(Constraint(kind="json_schema", value=schema)).matcher()
    assert matcher.accepted(list(b'{"a": 1, "b": "x"}')) == 18
    assert matcher.accepted(list(b'{"\\u0061": "x"}')) == 3


def test_older_drafts() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "integer"}, {"$ref": "#/definitions/x"}],
        "definitions": {"x": {"const": "é"}},
        "type": "array",
    }
    compiler = ConstraintCompiler(ByteTokenizer(), 257)
    grammar = compiler.compile(Constraint(kind="json_schema", value=schema))
    assert grammar.check('[1, "é"]') is None
    assert grammar.check('[1, "e"]')
    matcher = grammar.matcher()
    assert matcher.accepted([*'[1, "é"]'.encode()]) == 9
    assert matcher.accepted([*b'[1, "e"]']) == 5
