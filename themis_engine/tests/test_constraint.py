"""The compiler, its grammars and matchers, with real tokenizers."""

from __future__ import annotations

import csv
import io
import json
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from themis_core.errors import BackendFailed, InvalidRequest, ThemisError
from themis_core.messages import Constraint
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.constraint import ConstraintCompiler, Grammar, Matcher
from themis_engine.constraint.lark import names
from themis_engine.hf_tokenizer import HfTokenizer
from themis_engine.runner import Tokenizer
from themis_tiny_model import path

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "größe": {"type": "integer", "minimum": 1}},
    "required": ["name", "größe"],
    "additionalProperties": False,
}
EXAMPLES: dict[str, tuple[Any, str, str]] = {
    "json_schema": (PERSON, '{"name": "Jürgen 🎉", "größe": 3}', '{"name": 3}'),
    "regex": (r"[^\x00-\x7f]{2}\d+", "日本42", "日42"),
    "choice": (["grün", "grün und 日本", "a"], "grün und 日本", "grün und"),
    "lark": ('start: "x" WORD+ ["!"]\nWORD: / \\w+/', "x ab cd!", "x"),
    "gbnf": ('root ::= "é" [a-z]* ("," root)?', "éab,é", "éab,"),
}


class TwoEnds(ByteTokenizer):
    """Bytes, pieces of characters that are several tokens, and two end tokens."""

    PIECES = ("日本".encode()[:4], "日本".encode()[4:], b"ab", "🎉".encode()[:2], b'"}', b'": ')
    SIZE = 257 + len(PIECES) + 3

    @property
    def end_tokens(self) -> frozenset[int]:
        return frozenset({256, self.SIZE - 1})

    def token_bytes(self, token_id: int) -> bytes:
        if token_id >= self.VOCAB_SIZE:
            return (*self.PIECES, b"", b"", b"\x00end")[token_id - self.VOCAB_SIZE]
        return super().token_bytes(token_id)


class Spaced(ByteTokenizer):
    """Puts a start token and a space before every text, as SentencePiece does."""

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        return [self.END, *(b" " + text.encode() if text else b"")]


def bundled() -> tuple[Tokenizer, int]:
    config = json.loads((path("hf") / "config.json").read_text())
    return HfTokenizer(path("hf")), config["vocab_size"]


TOKENIZERS: dict[str, Callable[[], tuple[Tokenizer, int]]] = {
    "bytes": lambda: (ByteTokenizer(), ByteTokenizer.VOCAB_SIZE),
    "two ends": lambda: (TwoEnds(), TwoEnds.SIZE),
    "spaced": lambda: (Spaced(), Spaced.VOCAB_SIZE),
    "bundled": bundled,
    "more logits than tokens": lambda: (HfTokenizer(path("hf")), 2100),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def setup(request: pytest.FixtureRequest) -> tuple[Tokenizer, int, ConstraintCompiler]:
    tokenizer, size = TOKENIZERS[request.param]()
    return tokenizer, size, ConstraintCompiler(tokenizer, size)


def compile_bytes(kind: Any, value: Any) -> Grammar:
    compiler = ConstraintCompiler(ByteTokenizer(), ByteTokenizer.VOCAB_SIZE)
    return compiler.compile(Constraint(kind=kind, value=value))


def allowed(matcher: Matcher, size: int) -> set[int]:
    row = np.zeros(size, np.float32)
    matcher.mask(row)
    return {int(token) for token in np.flatnonzero(np.isfinite(row))}


def sample(
    grammar: Grammar, tokenizer: Tokenizer, size: int, seed: int, limit: int = 300, ends: float = 5
) -> str | None:
    """An output from random logits; None if it is not finished within `limit` tokens."""
    rng = np.random.default_rng(seed)
    matcher = grammar.matcher()
    data = bytearray()
    for _ in range(limit):
        row = rng.gumbel(size=size).astype(np.float32)
        row[list(tokenizer.end_tokens)] += ends
        row[[t for t in range(size) if tokenizer.token_bytes(t)[:1] in (b'"', b"}", b"<")]] += 3
        matcher.mask(row)
        token = int(row.argmax())
        matcher.advance(token)
        data += tokenizer.token_bytes(token) if token not in tokenizer.end_tokens else b""
        if token in tokenizer.end_tokens or matcher.must_end:
            return data.decode()
    return None


@pytest.mark.parametrize("kind", EXAMPLES)
def test_masks_let_the_language_through_and_nothing_else(
    setup: tuple[Tokenizer, int, ConstraintCompiler], kind: Any
) -> None:
    tokenizer, size, compiler = setup
    value, fine, wrong = EXAMPLES[kind]
    grammar = compiler.compile(Constraint(kind=kind, value=value))
    assert grammar.kind == kind
    assert grammar.check(fine) is None
    assert grammar.check(wrong)
    matcher = grammar.matcher()
    rest = fine.encode()
    while rest:
        pieces = {t: tokenizer.token_bytes(t) for t in allowed(matcher, size)}
        # The shortest that fits; where the text is forced, it is the tokenizer's own choice.
        token = min(
            (t for t, p in pieces.items() if p and rest.startswith(p)), key=pieces.__getitem__
        )
        rest = rest[len(pieces[token]) :]
        # End tokens all together, and exactly where the text may end.
        assert len(allowed(matcher, size) & tokenizer.end_tokens) == (
            len(tokenizer.end_tokens) if matcher.may_end else 0
        )
        matcher.advance(token)
    assert matcher.may_end
    end = min(tokenizer.end_tokens)
    matcher.advance(end)
    assert matcher.must_end
    assert allowed(matcher, size) == tokenizer.end_tokens


@pytest.mark.parametrize("kind", EXAMPLES)
def test_sampled_outputs_pass_the_check(
    setup: tuple[Tokenizer, int, ConstraintCompiler], kind: Any
) -> None:
    tokenizer, size, compiler = setup
    grammar = compiler.compile(Constraint(kind=kind, value=EXAMPLES[kind][0]))
    texts = [sample(grammar, tokenizer, size, seed) for seed in range(12)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 6
    assert [grammar.check(text) for text in finished] == [None] * len(finished)


def test_must_end_stops_at_once() -> None:
    grammar = compile_bytes("choice", ["a", "ab", "c"])
    matcher = grammar.matcher()
    assert (matcher.may_end, matcher.must_end) == (False, False)
    matcher.advance(ord("a"))
    assert (matcher.may_end, matcher.must_end) == (True, False)
    matcher.advance(ord("b"))
    assert (matcher.may_end, matcher.must_end) == (True, True)
    schema = compile_bytes("json_schema", {"type": "object", "additionalProperties": False})
    matcher = schema.matcher()
    for byte in b"{}":
        assert not matcher.must_end
        matcher.advance(byte)
    assert matcher.must_end


def test_forced_tokens_and_accepted_ones_change_nothing() -> None:
    tokenizer, size = bundled()
    compiler = ConstraintCompiler(tokenizer, size)
    text = "the quick brown fox, or not"
    grammar = compiler.compile(Constraint(kind="choice", value=[text, "no"]))
    matcher = grammar.matcher()
    assert matcher.forced(10) == []
    tokens = tokenizer.encode(text, parse_special=False)
    tokens = tokens[tokens.index(next(t for t in tokens if tokenizer.token_bytes(t))) :]
    end = min(tokenizer.end_tokens)
    before = allowed(matcher, size)
    assert matcher.accepted(tokens) == len(tokens)
    assert matcher.accepted([*tokens, end, end]) == len(tokens) + 2
    assert matcher.accepted([*tokens, end, tokens[0]]) == len(tokens) + 1
    assert matcher.accepted([*tokens[:3], end]) == 3
    assert matcher.accepted([end]) == 0
    assert matcher.accepted([]) == 0
    assert matcher.accepted([*tokens, tokens[0]]) == len(tokens)
    assert allowed(matcher, size) == before
    matcher.advance(tokens[0])
    forced = matcher.forced(100)
    assert forced == tokens[1 : 1 + len(forced)]
    assert len(forced) > 2
    assert matcher.forced(2) == forced[:2]
    assert matcher.forced(0) == []
    assert matcher.accepted(forced) == len(forced)


def test_forced_tokens_of_a_tokenizer_that_adds_spaces() -> None:
    tokenizer = Spaced()
    grammar = ConstraintCompiler(tokenizer, 257).compile(
        Constraint(kind="choice", value=["añb", "xyz"])
    )
    matcher = grammar.matcher()
    matcher.advance(ord("a"))
    assert bytes(matcher.forced(9)) == "ñb".encode()


def test_advancing_by_what_is_not_allowed_is_an_error_and_changes_nothing() -> None:
    matcher = compile_bytes("choice", ["ab"]).matcher()
    for token in (ord("b"), ByteTokenizer.END):
        with pytest.raises(BackendFailed):
            matcher.advance(token)
    matcher.advance(ord("a"))
    matcher.advance(ord("b"))
    matcher.advance(ByteTokenizer.END)
    with pytest.raises(BackendFailed):
        matcher.advance(ord("a"))


def test_masking_keeps_the_other_logits_and_covers_wider_rows() -> None:
    matcher = compile_bytes("choice", ["a"]).matcher()
    row = np.arange(300, dtype=np.float32)
    matcher.mask(row)
    assert row[ord("a")] == ord("a")
    assert np.isneginf(np.delete(row, ord("a"))).all()


def test_matchers_of_one_grammar_are_independent() -> None:
    """Walked in threads at once, prepared in others, each gives what it gives alone."""
    grammar = compile_bytes("json_schema", PERSON)
    alone = [sample(grammar, ByteTokenizer(), 257, seed) for seed in range(8)]
    results: dict[int, str | None] = {}

    def run(seed: int) -> None:
        results[seed] = sample(grammar, ByteTokenizer(), 257, seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[seed] for seed in range(8)] == alone


def test_a_mask_prepared_in_another_thread_is_the_same() -> None:
    grammar = compile_bytes("regex", "[a-f]{3}")
    plain, prepared = grammar.matcher(), grammar.matcher()
    thread = threading.Thread(target=prepared.prepare)
    thread.start()
    thread.join()
    assert allowed(plain, 257) == allowed(prepared, 257) == set(b"abcdef")


def test_without_end_tokens_only_a_complete_text_ends() -> None:
    class Endless(ByteTokenizer):
        @property
        def end_tokens(self) -> frozenset[int]:
            return frozenset()

    compiler = ConstraintCompiler(Endless(), 256)
    matcher = compiler.compile(Constraint(kind="choice", value=["ab"])).matcher()
    assert allowed(matcher, 256) == {ord("a")}
    matcher.advance(ord("a"))
    matcher.advance(ord("b"))
    assert matcher.must_end


def test_the_compiler_is_cheap_until_it_is_used() -> None:
    class Counting(ByteTokenizer):
        calls = 0

        def token_bytes(self, token_id: int) -> bytes:
            self.calls += 1
            return super().token_bytes(token_id)

    tokenizer = Counting()
    compiler = ConstraintCompiler(tokenizer, 257)
    assert tokenizer.calls == 0
    for _ in range(3):
        compiler.compile(Constraint(kind="choice", value=["a"]))
    assert tokenizer.calls <= 257


@pytest.mark.parametrize("name", names())
def test_shipped_grammars(name: str) -> None:
    readers: dict[str, Any] = {
        "xml": ElementTree.fromstring,
        "json": json.loads,
        "csv": lambda text: list(csv.reader(io.StringIO(text, newline=""), strict=True)),
        "arithmetic": lambda text: compile(
            text.replace("^", "**").replace(" ", ""), "output", "eval", dont_inherit=True
        ),
    }
    tokenizer, size = bundled()
    compiler = ConstraintCompiler(tokenizer, size)
    grammar = compiler.compile(Constraint(kind="lark", value=f"@{name}"))
    finished = 0
    for seed in range(25):
        text = sample(grammar, tokenizer, size, seed, limit=150, ends=2)
        if text is not None:
            finished += 1
            assert grammar.check(text) is None
            if name != "arithmetic" or not any(word in text for word in ("if", "in", "or", "as")):
                readers[name](text)
    assert finished >= 8


@pytest.mark.parametrize(
    ("name", "fine", "wrong"),
    [
        ("xml", '<item id="a&lt;b"><name>é</name><value/></item>', "<item><name></item></name>"),
        ("json", '{"a": [1, null, "x"]}', '{"a": [1,]}'),
        ("csv", 'a,"b ""x"", c",\r\n1,,3\r\n', 'a,"b'),
        ("arithmetic", "-(a1 + 2.5) ^ 2 * 3", "2 + * 3"),
    ],
)
def test_shipped_grammars_by_example(name: str, fine: str, wrong: str) -> None:
    grammar = compile_bytes("lark", f"@{name}")
    assert grammar.check(fine) is None
    assert grammar.check(wrong)


@pytest.mark.parametrize(
    ("kind", "value", "field", "said"),
    [
        ("choice", [], "constraint.value", "between 1"),
        ("choice", "abc", "constraint.value", "list of texts"),
        ("choice", ["a", 1], "constraint.value", "list of texts"),
        ("choice", ["\ud800"], "constraint.value", "surrogate"),
        ("regex", 5, "constraint.value", "text"),
        ("regex", "(?=a)b", "constraint.value", "look-ahead"),
        ("gbnf", None, "constraint.value", "text"),
        ("lark", "@yaml", "constraint.value", "no grammar named 'yaml'"),
        ("lark", "", "constraint.value", "empty"),
        ("lark", 'start: "a" x', "constraint.value", "x"),
        ("lark", 'start: "a\n', "constraint.value", "1("),
        ("lark", "start: <think> /a/", "constraint.value", "Line 1: the special token <think>"),
        ("lark", "// hi\nstart: <[5]>", "constraint.value", "Line 2: the special token"),
        ("lark", "start: a\na[temperature=0.5]: /x/", "constraint.value", "Line 2: the option"),
        ("lark", 'start: a\na[suffix="]", max_tokens=3]: /x/', "constraint.value", "max_tokens"),
        ("lark", "start: a\na[lazy, capture]: /x/", "constraint.value", "capture"),
        ("lark", '%llguidance {"allow_invalid_utf8": true}\nstart: /a/', "constraint.value", "opt"),
        ("lark", 'start: %json {"type": "string", "nullable": true}',
         "constraint.value.%json.nullable", "nullable"),
        ("lark", 'start: %json {"x-guidance": {"lenient": true}}',
         "constraint.value.%json.x-guidance", "x-guidance"),
        ("lark", "start: %json {", "constraint.value", "JSON object"),
        ("lark", "start: %lark { start: /a/ }", "constraint.value", "%lark"),
        ("lark", "start: /a(?=b)/", "constraint.value", "look"),
    ],
)  # fmt: skip
def test_refusals_name_what_is_wrong(kind: Any, value: Any, field: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compile_bytes(kind, value)
    assert caught.value.field == field
    assert said in str(caught.value)


def test_json_schemas_within_a_grammar_are_honoured() -> None:
    grammar = compile_bytes(
        "lark", 'start: "x=" %json {"type": "string", "format": "date"} // {"a": 1}\n'
    )
    assert grammar.check('x="2024-02-29"') is None
    assert grammar.check('x="2023-02-29"')


def test_errors_survive_pickling() -> None:
    with pytest.raises(ThemisError) as caught:
        compile_bytes("regex", "(a")
    assert caught.value.to_dict()["code"] == "invalid_request"
