"""GBNF, llama.cpp's notation for grammars: the parser. `gbnf_lexemes` and `gbnf_lark` go on.

    root ::= "- " item+          # literals, references, repetition * + ? {m} {m,} {m,n}
    item ::= [^\\n]{1,80} "\\n" | ( "a" . )

So is plain EBNF with `::=`, where it uses these signs: single quotes and /* comments */ are read
too. A rule may go on over several lines. Left recursion is fine here, unlike in llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from themis_core.errors import InvalidRequest
from themis_engine.constraint import charset as cs
from themis_engine.constraint.charset import Charset
from themis_engine.constraint.regex import Alt, Chars, Repeat, Seq

MAX_SOURCE = 100_000
MAX_DEPTH = 60
MAX_REPEAT = 10_000
START = "root"


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to a rule."""

    name: str


Expr = Chars | Seq | Alt | Repeat | Ref
"""Expressions of a grammar; the items of `Seq`, `Alt` and `Repeat` may be `Ref` here."""

_TOKEN = re.compile(
    r"""
    (?P<space> \s+ | \#[^\n]* | /\*.*?\*/ )
  | (?P<head> [A-Za-z0-9_][\w-]* \s* ::= )
  | (?P<name> [A-Za-z0-9_][\w-]* )
  | (?P<text> "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' )
  | (?P<chars> \[ (?:[^\]\\]|\\.)* \] )
  | (?P<count> \{ \s* \d* \s* ,? \s* \d* \s* \} )
  | (?P<sign> [()|*+?.] )
  | (?P<token> !? < [^<>\s]* > )
  | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_DIGITS = {"x": 2, "u": 4, "U": 8}


def parse(source: str, field: str) -> dict[str, Expr]:
    """The rules of a grammar, by name. Raises `InvalidRequest` that names rule and line."""
    if len(source) > MAX_SOURCE:
        raise InvalidRequest(f"The grammar is longer than {MAX_SOURCE} characters.", field=field)
    parser = _Parser(source, field)
    rules = parser.rules()
    if START not in rules:
        raise InvalidRequest(
            "The grammar has no rule root.", field=field, remedy="Name its first rule root."
        )
    for name, line in parser.used.items():
        if name not in rules:
            raise InvalidRequest(f"Line {line}: there is no rule {name!r}.", field=field)
    return rules


class _Parser:
    """Recursive descent over tokens (kind, text, line)."""

    def __init__(self, source: str, field: str) -> None:
        self.field = field
        self.rule = ""
        self.used: dict[str, int] = {}
        self.depth = 0
        self.at = 0
        self.tokens: list[tuple[str, str, int]] = []
        line = 1
        for match in _TOKEN.finditer(source):
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup or "", match[0], line))
            line += match[0].count("\n")
        self.tokens.append(("end", "", line))

    def refuse(self, message: str) -> InvalidRequest:
        line = self.tokens[min(self.at, len(self.tokens) - 1)][2]
        rule = f", rule {self.rule}" if self.rule else ""
        return InvalidRequest(f"Line {line}{rule}: {message}", field=self.field)

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def text(self) -> str:
        return self.tokens[self.at][1]

    def rules(self) -> dict[str, Expr]:
        found: dict[str, Expr] = {}
        while self.kind != "end":
            if self.kind != "head":
                raise self.refuse(f"a rule begins with name ::=, not with {self.text!r}.")
            self.rule = self.text.removesuffix("::=").strip()
            if self.rule in found:
                raise self.refuse("the rule is there already.")
            self.at += 1
            found[self.rule] = self.alternatives()
            if self.kind not in ("head", "end"):
                raise self.refuse(self.unexpected())
        self.rule = ""
        return found

    def unexpected(self) -> str:
        if self.kind == "token":
            return f"the token {self.text} cannot be honoured: constraints are about text."
        if self.text == "-":
            return "the exclusion A - B cannot be honoured."
        return f"{self.text!r} is not expected here."

    def alternatives(self) -> Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refuse(f"brackets are nested more than {MAX_DEPTH} deep.")
        branches = [self.sequence()]
        while self.text == "|" and self.kind == "sign":
            self.at += 1
            branches.append(self.sequence())
        self.depth -= 1
        return branches[0] if len(branches) == 1 else Alt(tuple(branches))  # type: ignore[arg-type]

    def sequence(self) -> Expr:
        items: list[Expr] = []
        while (item := self.item()) is not None:
            items.append(self.repeated(item))
        return items[0] if len(items) == 1 else Seq(tuple(items))  # type: ignore[arg-type]

    def item(self) -> Expr | None:
        kind, text, line = self.tokens[self.at]
        if kind in ("head", "end") or (kind == "sign" and text in "|)"):
            return None
        if kind == "text":
            codes = self.codes(text[1:-1])
            self.at += 1
            return Seq(tuple(Chars(((code, code),)) for code, _ in codes))
        if kind == "chars":
            chars = self.char_class(text[1:-1])
            self.at += 1
            return Chars(chars)
        if kind == "name":
            self.used.setdefault(text, line)
            self.at += 1
            return Ref(text)
        if text == ".":
            self.at += 1
            return Chars(cs.ANY)
        if text == "(":
            self.at += 1
            inner = self.alternatives()
            if self.text != ")" or self.kind != "sign":
                raise self.refuse("a bracket is not closed.")
            self.at += 1
            return inner
        raise self.refuse(self.unexpected())

    def repeated(self, item: Expr) -> Expr:
        while self.kind == "count" or (self.kind == "sign" and self.text in "*+?"):
            low, high = self.bounds()
            if max(low, high or 0) > MAX_REPEAT:
                raise self.refuse(f"more than {MAX_REPEAT} repetitions.")
            if high is not None and high < low:
                raise self.refuse(f"the repetition {self.text} is in the wrong order.")
            self.at += 1
            item = Repeat(item, low, high)  # type: ignore[arg-type]
        return item

    def bounds(self) -> tuple[int, int | None]:
        if self.kind == "sign":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.text]
        low, comma, high = "".join(self.text[1:-1].split()).partition(",")
        if not low or len(low) + len(high) > 12:
            raise self.refuse(f"the repetition {self.text} has no lower bound, or a huge one.")
        return int(low), (int(high) if high else None) if comma else int(low)

    def codes(self, text: str) -> list[tuple[int, bool]]:
        """Code points of a text with escapes, and whether each was escaped."""
        found = []
        at = 0
        while at < len(text):
            if text[at] != "\\":
                found.append((ord(text[at]), False))
                at += 1
                continue
            letter = text[at + 1]
            digits = _DIGITS.get(letter, 0)
            code_text = text[at + 2 : at + 2 + digits]
            if digits and len(code_text) == digits and re.fullmatch("[0-9A-Fa-f]+", code_text):
                code = int(code_text, 16)
            elif letter in _SIMPLE or (letter.isascii() and not letter.isalnum()):
                code = ord(_SIMPLE.get(letter, letter))
            else:
                raise self.refuse(f"the escape \\{letter} is not known.")
            if code > 0x10FFFF:
                raise self.refuse(f"the escape \\{letter}{code_text} is no character.")
            found.append((code, True))
            at += 2 + digits
        if any(0xD800 <= code <= 0xDFFF for code, _ in found):
            raise self.refuse("a surrogate is no character.")
        return found

    def char_class(self, text: str) -> Charset:
        negated = text.startswith("^")
        codes = self.codes(text[negated:])
        ranges = []
        at = 0
        while at < len(codes):
            low = high = codes[at][0]
            if at + 2 < len(codes) and codes[at + 1] == (ord("-"), False):
                high = codes[at + 2][0]
                at += 2
            at += 1
            if low > high:
                raise self.refuse(f"a range in [{text}] is in the wrong order.")
            ranges.append((low, high))
        chars = cs.complement(cs.charset(ranges)) if negated else cs.charset(ranges)
        if not chars:
            raise self.refuse(f"[{text}] holds no character.")
        return chars
