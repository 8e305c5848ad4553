"""Constraints become grammars here, whatever their kind; all of them go through llguidance."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from themis_core.errors import InvalidRequest, ThemisError
from themis_core.messages import Constraint
from themis_engine.constraint import gbnf, gbnf_lark, json_check, json_schema, lark, regex
from themis_engine.constraint.automaton import Automaton
from themis_engine.constraint.matcher import Grammar
from themis_engine.constraint.vocabulary import Vocabulary, byte_vocabulary
from themis_engine.runner import Tokenizer

FIELD = "constraint"
VALUE = "constraint.value"
MAX_CHOICES = 10_000
MAX_CHOICE_CHARACTERS = 100_000

Check = Callable[[str], str | None]


def limits(kind: str) -> LLParserLimits:
    """What a grammar may cost. llguidance counts fuel and items; nothing here is timed.

    An ambiguous grammar is what makes steps slow: with these items, the worst step found takes
    some 70 ms on a vocabulary of 150,000 tokens, without Python's lock. A JSON Schema is not
    ambiguous in that way, but one with a thousand optional properties needs long rows.
    """
    structured = kind == "json_schema"
    return LLParserLimits(
        max_items_in_row=5_000 if structured else 500,
        step_max_items=20_000 if structured else 5_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        max_lexer_states=30_000,
        max_grammar_size=150_000,
        verbose_errors=False,
    )


class ConstraintCompiler:
    """Compiles constraints for one model. Safe to use from several threads at once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint, *, tokens: bool = False) -> Grammar:
        """The constraint's grammar, ready for any number of sequences. Blocks; bounded in time.

        With `tokens`, a Lark grammar may name special tokens: for grammars of the engine's own.
        Raises `InvalidRequest`, naming the keyword or line that cannot be honoured.
        """
        if tokens and constraint.kind == "lark":
            source = lark.source(_text(constraint.value, "lark"), VALUE, tokens=True)
            check = _parse_again(source)
        else:
            source, check = _SOURCES[constraint.kind](constraint.value)
        vocabulary = self._known_vocabulary()
        bounds = limits(constraint.kind)
        grammar = Grammar(
            constraint.kind, vocabulary, lambda: start(vocabulary, source, bounds), check
        )
        try:
            # The first mask shows whether the language has a text at all.
            grammar.matcher().prepare()
        except ThemisError as error:
            raise _refused(error.message) from error
        return grammar

    def _known_vocabulary(self) -> Vocabulary:
        # Held while the trie is built, and taken by compiling threads only: they need it anyway.
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary


def start(vocabulary: Vocabulary, source: str, limits: LLParserLimits) -> LLMatcher:
    """A walk at the beginning of a grammar. Raises `InvalidRequest`."""
    walk = LLMatcher(vocabulary.ll, source, log_level=0, limits=limits)
    if walk.is_error():
        raise _refused(walk.get_error())
    if warnings := walk.get_grammar_warnings():
        raise _refused("; ".join(warnings))
    return walk


_PLAINER = {
    "oneOf constraints are not supported": "the branches of a oneOf do not provably exclude each "
    "other. Use anyOf, or give each a constant of its own under a required property",
    "min/maxProperties only supported": "minProperties and maxProperties are honoured only where "
    "all the listed properties are required",
    "circular references with sibling keys": "a $ref that leads back to itself has keywords beside "
    "it. Put them into the schema that it refers to",
}
"""What llguidance says of schemas, in terms of what the caller can do."""


def _refused(text: str) -> InvalidRequest:
    text = " ".join(text.split())
    text = next((plain for said, plain in _PLAINER.items() if said in text), text)
    shown = text if len(text) <= 400 else f"{text[:397]}…"
    return InvalidRequest(f"The constraint cannot be honoured: {shown}", field=VALUE)


def _text(value: Any, kind: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(
            f"The value of a constraint of kind {kind} is a text, not {type(value).__name__}.",
            field=VALUE,
        )
    if not value.isascii():
        _check_encodable(value)
    return value


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = "The constraint holds a lone surrogate, so it is not valid Unicode."
        raise InvalidRequest(message, field=VALUE) from error


def _json_schema(value: Any) -> tuple[str, Check]:
    source = json_schema.source(value, VALUE)
    return source, json_check.checker(value, json_schema.draft_of(value, VALUE))


def _regex(value: Any) -> tuple[str, Check]:
    node = regex.parse(_text(value, "regex"), search=False, field=VALUE)
    automaton = Automaton(node)

    def check(text: str) -> str | None:
        return None if automaton.matches(text) else f"{text[:100]!r} does not match {value!r}."

    return LLMatcher.grammar_from_regex(regex.to_rust(node)), check


def _choice(value: Any) -> tuple[str, Check]:
    if not isinstance(value, list | tuple) or not all(isinstance(c, str) for c in value):
        raise InvalidRequest("The value of a choice is a list of texts.", field=VALUE)
    if not 0 < len(value) <= MAX_CHOICES or sum(map(len, value)) > MAX_CHOICE_CHARACTERS:
        raise InvalidRequest(
            f"A choice has between 1 and {MAX_CHOICES} texts, of at most "
            f"{MAX_CHOICE_CHARACTERS} characters together.",
            field=VALUE,
        )
    _check_encodable("".join(value))
    texts = frozenset(value)
    node = regex.Alt(tuple(map(regex.literal, dict.fromkeys(value))))

    def check(text: str) -> str | None:
        return None if text in texts else f"{text[:100]!r} is none of the choices."

    return LLMatcher.grammar_from_regex(regex.to_rust(node)), check


def _lark(value: Any) -> tuple[str, Check]:
    source = lark.source(_text(value, "lark"), VALUE)
    return source, _parse_again(source)


def _gbnf(value: Any) -> tuple[str, Check]:
    source = gbnf_lark.convert(gbnf.parse(_text(value, "gbnf"), VALUE), VALUE)
    return source, _parse_again(source)


def _parse_again(source: str) -> Check:
    """A check by a fresh parse over bytes, which shares no mask and no token with the first one."""
    beginning: list[LLMatcher] = []

    def check(text: str) -> str | None:
        if not beginning:
            beginning.append(start(byte_vocabulary(), source, limits("lark")))
        walk = beginning[0].deep_copy()
        data = text.encode()
        fitting = walk.try_consume_tokens(list(data))
        if fitting < len(data):
            return f"The output leaves the grammar at byte {fitting}."
        return None if walk.is_accepting() else "The output ends in the middle of the grammar."

    return check


_SOURCES: dict[str, Callable[[Any], tuple[str, Check]]] = {
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
    "gbnf": _gbnf,
}
