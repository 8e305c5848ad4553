"""Regular expressions: against Python's `re`, and what is refused."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from themis_core.errors import InvalidRequest
from themis_core.messages import Constraint
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.constraint import ConstraintCompiler, charset, regex
from themis_engine.constraint.automaton import Automaton

COMPILER = ConstraintCompiler(ByteTokenizer(), ByteTokenizer.VOCAB_SIZE)
TEXTS = st.text(st.sampled_from("abAB01_-. \n\té٣\u2028🎉\u00a0"), max_size=8)


def generates(source: str, text: str) -> bool:
    """Whether llguidance lets a text through for a constraint of kind regex."""
    matcher = COMPILER.compile(Constraint(kind="regex", value=source)).matcher()
    tokens = [*text.encode(), ByteTokenizer.END]
    return matcher.accepted(tokens) == len(tokens)


def expressions() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(
        ["a", "b", "B", "0", "é", "🎉", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]",
         "[^ab]", r"[\d-]", r"[^\s]", r"[^\W0]", "[a-c_]", r"\.", r"\n", r"\x41", r"\u00e9", "-"]
    )  # fmt: skip

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        signs = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,}", "*?", "+?"])
        return st.one_of(
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda p: f"({'|'.join(p)})"),
            st.tuples(inner, signs).map(lambda p: f"(?:{p[0]}){p[1]}"),
        )

    return st.recursive(atoms, extend, max_leaves=6)


def same_in_all_dialects(source: str) -> bool:
    """Whether Python reads it just as it was parsed: no shorthand, whose sets differ."""
    return not re.search(r"\\[dwsDWS]|\.", source)


@settings(max_examples=300, deadline=None)
@given(expressions(), TEXTS)
@example("(?:a|ab)(?:c|bcd)", "abcd")
@example(r"\D", "٣")
@example(r"[^\W0]", "é")
@example("(?:a*)*", "")
def test_what_is_generated_python_matches(source: str, text: str) -> None:
    mine = generates(source, text)
    assert Automaton(regex.parse(source, search=False, field="f")).matches(text) == mine
    python = re.fullmatch(source, text) is not None
    assert python or not mine
    if same_in_all_dialects(source):
        assert mine == python


@settings(max_examples=300, deadline=None)
@given(
    expressions(),
    st.sampled_from(["{}", "^{}", "{}$", "^{}$", "^(?:{}|b)$", "(?:^{}|b$)", "^a|{}$"]),
    TEXTS,
)
@example("a", "^{}$", "a\n")
@example("", "^{}", "x")
def test_searching_as_patterns_do(source: str, frame: str, text: str) -> None:
    whole = frame.format(source)
    mine = Automaton(regex.parse(whole, search=True, field="f")).matches(text)
    # In Python, $ also matches before a line break at the end; nowhere else.
    python = re.search(re.sub(r"(?<!\\)\$", r"\\Z", whole), text) is not None
    assert python or not mine
    if same_in_all_dialects(whole):
        assert mine == python


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a(?=b)", "character 2, what cannot be honoured: look-ahead"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "back-reference"),
        (r"\bword", "word boundary"),
        ("(?i)a", "a flag"),
        ("(?>a)", "atomic"),
        ("a++", "possessive"),
        ("a**", "repetition of a repetition"),
        ("*a", "repetition of nothing"),
        ("{2}", "repetition of nothing"),
        ("a{,2}", "dialects read differently"),
        ("a{3,2}", "wrong order"),
        ("a{20000}", "repetitions"),
        ("(a", "without a closing bracket"),
        ("a)", "without an opening"),
        ("[a", "without a closing bracket"),
        ("[]a]", "empty class"),
        ("[z-a]", "wrong order"),
        (r"[\d-z]", "not single characters"),
        ("[[:alpha:]]", "operator"),
        ("[a&&b]", "operator"),
        (r"[^\s\S]", "without a character"),
        (r"\p{Greek}", "property"),
        (r"\x{110000}", "no character"),
        (r"\ud800", "no character"),
        (r"\q", "escape"),
        ("a\\", "backslash at the end"),
        ("a^b", "anchor in the middle"),
        ("(^)*", "repeated anchor"),
        ("^*", "repeated anchor"),
        ("(?:^a)*", "anchor in the middle"),
        ("(" * 100 + "a" + ")" * 100, "nested"),
        ("(?:(?:a{100}){100}){100}", "too large"),
        ("a" * 30_000, "longer"),
    ],
)
def test_refused_with_the_position(source: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        COMPILER.compile(Constraint(kind="regex", value=source))
    assert said in str(caught.value)
    assert caught.value.field == "constraint.value"


@pytest.mark.parametrize(
    ("source", "fine", "wrong"),
    [
        (r"^\d{2}$", "12", "٣٣"),
        (r"\p{Lu}\p{Ll}+", "Éa", "éa"),
        (r"\P{L}", "1", "é"),
        (r"(?P<year>\d+)-(?<month>\d+)", "1-2", "1"),
        (r"\u{1F389}\x{e9}\xe9", "🎉éé", "🎉ée"),
        (r"[\]\-^]+", "]-^", "a"),
        (r"a{b}", "a{b}", "ab"),
        (r"\Aa\Z", "a", "a\n"),
        (r"[\b]", "\b", "b"),
        (r"\$\^\/", "$^/", "a"),
        ("", "", "a"),
        ("a|", "", "b"),
    ],
)
def test_notation(source: str, fine: str, wrong: str) -> None:
    assert generates(source, fine)
    assert not generates(source, wrong)


CHARACTERS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5)


@given(CHARACTERS, CHARACTERS)
def test_sets_of_characters(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    sets = [{c for lo, hi in ranges for c in range(lo, hi + 1)} for ranges in (a, b)]
    mine = [charset.charset(ranges) for ranges in (a, b)]

    def members(s: charset.Charset) -> set[int]:
        return {c for c in range(80) if charset.contains(s, chr(c))}

    assert members(mine[0]) == sets[0]
    assert members(charset.union(*mine)) == sets[0] | sets[1]
    assert members(charset.intersection(*mine)) == sets[0] & sets[1]
    assert members(charset.complement(mine[0])) == set(range(80)) - sets[0]
    assert charset.complement(charset.complement(mine[0])) == mine[0]
    assert charset.complement(charset.NONE) == charset.ANY
    assert not charset.intersection(charset.charset([(0, sys.maxunicode)]), ((0xD800, 0xDFFF),))
