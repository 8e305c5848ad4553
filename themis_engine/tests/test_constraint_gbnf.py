"""GBNF: the notation, and that the conversion keeps the language exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from themis_core.errors import InvalidRequest
from themis_core.messages import Constraint
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.constraint import ConstraintCompiler, Grammar, gbnf, gbnf_lark
from themis_engine.constraint.gbnf import Expr, Ref
from themis_engine.constraint.gbnf_lexemes import children
from themis_engine.constraint.regex import Alt, Chars, Repeat, Seq

LONGEST = 4
ALPHABET = "ab"
TEXTS = ["".join(t) for n in range(LONGEST + 1) for t in itertools.product(ALPHABET, repeat=n)]
COMPILER = ConstraintCompiler(ByteTokenizer(), ByteTokenizer.VOCAB_SIZE)

JSON = r"""
# As small as JSON gets.
root   ::= value
value  ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws |
           "[" ws (value ("," ws value)*)? "]" ws | string | number | ("true" | "null") ws
string ::= "\"" ([^"\\\x00-\x1F\x7F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


def compiled(source: str) -> Grammar:
    return COMPILER.compile(Constraint(kind="gbnf", value=source))


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether the masks let a text through, byte by byte, and the end behind it."""
    matcher = grammar.matcher()
    tokens = [*text.encode(), ByteTokenizer.END]
    for token in tokens:
        row = np.zeros(ByteTokenizer.VOCAB_SIZE, np.float32)
        matcher.mask(row)
        if not np.isfinite(row[token]):
            return False
        matcher.advance(token)
    return True


def language(rules: dict[str, Expr]) -> set[str]:
    """All short texts of a grammar, by iterating its rules as equations over sets of texts."""
    known: dict[str, set[str]] = {name: set() for name in rules}

    def texts(expr: Expr) -> set[str]:
        if isinstance(expr, Ref):
            return known[expr.name]
        if isinstance(expr, Chars):
            return {c for c in ALPHABET if any(lo <= ord(c) <= hi for lo, hi in expr.chars)}
        if isinstance(expr, Alt):
            return set().union(*(texts(item) for item in children(expr)))
        if isinstance(expr, Seq):
            found = {""}
            for item in children(expr):
                found = joined(found, texts(item))
            return found
        assert isinstance(expr, Repeat)
        one = texts(children(expr)[0])
        found = {""}
        for _ in range(expr.low):
            found = joined(found, one)
        result = set(found)
        for _ in range(LONGEST + 1 if expr.high is None else expr.high - expr.low):
            found = joined(found, one)
            result |= found
        return result

    while True:
        new = {name: texts(body) for name, body in rules.items()}
        if new == known:
            return known["root"]
        known = new


def joined(left: set[str], right: set[str]) -> set[str]:
    return {a + b for a in left for b in right if len(a + b) <= LONGEST}


def expressions() -> st.SearchStrategy[str]:
    leaves = st.sampled_from(
        ['"a"', '"b"', '"ab"', '"aa"', '""', "[ab]", "[^a]", "[a-a]", ".", "x", "y", "x", "root"]
    )

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        signs = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,3}", "{2,}"])
        return st.one_of(
            st.lists(inner, min_size=2, max_size=3).map(" ".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda p: f"({' | '.join(p)})"),
            st.tuples(inner, signs).map(lambda p: f"({p[0]}){p[1]}"),
        )

    return st.recursive(leaves, extend, max_leaves=5)


@settings(max_examples=400, deadline=None)
@given(expressions(), expressions(), expressions())
@example('x "b" | x "ab"', '"a"+', '""')
@example('[ab]+ "a" [ab]', '"a"', '"b"')
@example("(x | y)*", '"a" "b"?', '"ab" | "a" root')
@example('"a" root "b" | ""', '""', '""')
@example("root root | x", '"a"', '""')
@example("((x?)*){2}", '"a"?', '""')
def test_the_language_stays_the_same(root: str, x: str, y: str) -> None:
    source = f"root ::= {root}\nx ::= {x}\ny ::= {y}"
    rules = gbnf.parse(source, "constraint.value")
    try:
        grammar = compiled(source)
    except InvalidRequest as error:
        if "never ends" not in str(error):
            raise
        return
    expected = language(rules)
    assert {text for text in TEXTS if accepts(grammar, text)} == expected
    assert {text for text in TEXTS if grammar.check(text) is None} == expected


def test_json_has_few_lexemes() -> None:
    """Strings and numbers are read as a whole: character by character would be slow."""
    lark = gbnf_lark.convert(gbnf.parse(JSON, "value"), "value")
    assert len([line for line in lark.splitlines() if line.startswith("T")]) < 20
    grammar = compiled(JSON)
    for text in ('{"a": [1, -2.5e3]}', '{"a": [1, -2.5, "\\u00e9ü", null]}', "[]", "tru"):
        fine = text not in ('{"a": [1, -2.5e3]}', "tru")
        assert accepts(grammar, text) == fine
        assert (grammar.check(text) is None) == fine


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('root ::= "a', "Line 1, rule root"),
        ('x ::= "a"', "no rule root"),
        ('root ::= "a"\n  y', "Line 2: there is no rule 'y'"),
        ("root ::= [b-a]", "wrong order"),
        ("root ::= [^\\x00-\\U0010FFFF]", "no character"),
        ('root ::= "a"\nroot ::= "b"', "Line 2, rule root: the rule is there already"),
        ("root ::= <think> .*", "Line 1, rule root: the token <think>"),
        ("root ::= !<[5]>", "token"),
        ('root ::= "a"{3,2}', "wrong order"),
        ('root ::= "a"{,2}', "no lower bound"),
        ('root ::= "a"{100000}', "repetitions"),
        ('root ::= "\\q"', "escape"),
        ('root ::= "\\ud800"', "surrogate"),
        ('root ::= ("a"', "not closed"),
        ('root ::= "a")', "not expected"),
        ("root ::= *", "not expected"),
        ('root ::= "a" - "b"', "exclusion"),
        ('"a" ::= "b"', "a rule begins with"),
        ('root ::= "a" root', "The rule root never ends"),
        ('root ::= "b" | x\nx ::= "a" x', "The rule x never ends"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "nested"),
        ("", "no rule root"),
        ('root ::= "a" # ' + "x" * 100_000, "longer"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_line(source: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiled(source)
    assert said in str(caught.value)
    assert caught.value.field == "constraint.value"


@pytest.mark.parametrize(
    ("source", "fine", "wrong"),
    [
        ("root ::= 'it''s' | \"x\" /* EBNF */", "x", "y"),
        ('root::="ä"\n  |\n  "ö"', "ö", "ä\n"),
        ('root ::= [\\]\\-\\\\a-c-]+ # comment "', "]-\\b-", "d"),
        ('root ::= "\\x41\\u00e9\\U0001F389\\n\\""', 'Aé🎉\n"', "A"),
        ("root ::= .", "🎉", "ab"),
        ("root ::= [^\\n]+ [ぁ-ゟ]", "xyぁ", "ぁ\n"),
    ],
)
def test_notation(source: str, fine: str, wrong: str) -> None:
    grammar = compiled(source)
    assert accepts(grammar, fine)
    assert not accepts(grammar, wrong)
