"""Regular expressions: what `Constraint(kind="regex")` and JSON Schema's `pattern` may contain.

Dialects differ (ECMA-262, which JSON Schema names; Python; Rust, which llguidance speaks). So the
source is parsed here, and llguidance gets explicit ranges of characters. Where dialects read an
expression differently, the smaller language is taken: what is generated, every dialect accepts.
`\\d` is ASCII for instance, while `\\D` leaves out every digit of Unicode. What has no common
meaning, or is not regular, is refused with its position.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from themis_core.errors import InvalidRequest
from themis_engine.constraint import charset as cs
from themis_engine.constraint.charset import Charset

MAX_SOURCE = 20_000
MAX_DEPTH = 60
MAX_REPEAT = 10_000
MAX_STATES = 20_000


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set."""

    chars: Charset


@dataclass(frozen=True, slots=True)
class Seq:
    """One node after the other."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """Any one of the nodes."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A node, `low` to `high` times; without `high`, any number from `low` on."""

    item: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning (`start`) or the end of the text; gone after `_lower`."""

    start: bool


Node = Chars | Seq | Alt | Repeat | Anchor

EMPTY = Seq(())
_ANYTHING = Repeat(Chars(cs.ANY), 0, None)


def literal(text: str) -> Node:
    """Exactly this text."""
    return Seq(tuple(Chars(((ord(c), ord(c)),)) for c in text))


def parse(source: str, *, search: bool, field: str) -> Node:
    """The texts that an expression matches: as a whole, or with `search` somewhere in them.

    The result holds no anchors. Raises `InvalidRequest`, naming `field` and the position.
    """
    parser = _Parser(source, field)
    node = parser.parse()
    edge = "search" if search else "exact"
    lowered = _lower(node, edge, edge, parser)
    if size(lowered) > MAX_STATES:
        raise parser.refuse("too large, its repetitions written out", 0)
    return lowered


@functools.cache
def perl_class(letter: str) -> tuple[Charset, Charset]:
    """What `\\d`, `\\w` or `\\s` surely matches in every dialect, and what it may match in one."""
    sure = {
        "d": cs.charset([(48, 57)]),
        "w": cs.charset([(48, 57), (65, 90), (95, 95), (97, 122)]),
        "s": cs.of(" \t\n\r\f\v"),
    }[letter]
    return sure, cs.union(cs.matching(f"\\{letter}+"), cs.of("\ufeff") if letter == "s" else ())


_DOT = cs.complement(cs.of("\n\r\u2028\u2029\x85"))
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_COUNT = re.compile(r"\{(\d+)(,?)(\d*)\}")
_NAMED = re.compile(r"\?P?<([A-Za-z_]\w*)>")
_REFUSED_GROUPS = {
    "?=": "look-ahead",
    "?!": "look-ahead",
    "?<=": "look-behind",
    "?<!": "look-behind",
    "?>": "an atomic group",
    "?P=": "a back-reference",
    "?P>": "a recursion",
    "?(": "a conditional group",
    "?#": "a comment",
}
_REFUSED_ESCAPES = {
    "b": "a word boundary",
    "B": "a word boundary",
    "k": "a back-reference",
    "G": "an anchor of the last match",
    "K": "a reset of the match",
    "R": "a line break class",
    "X": "a grapheme class",
    "Q": "quoting",
    "E": "quoting",
    "c": "a control escape",
    "N": "a named character",
}


class _Parser:
    """Recursive descent over the source."""

    def __init__(self, source: str, field: str) -> None:
        self.source, self.field = source, field
        self.at = 0
        self.depth = 0
        if len(source) > MAX_SOURCE:
            raise self.refuse(f"longer than {MAX_SOURCE} characters", 0)

    def refuse(self, what: str, at: int) -> InvalidRequest:
        shown = self.source if len(self.source) <= 80 else self.source[:77] + "…"
        return InvalidRequest(
            f"The regular expression {shown!r} is, or has at character {at + 1}, what cannot be "
            f"honoured: {what}.",
            field=self.field,
        )

    def parse(self) -> Node:
        node = self.alternatives()
        if self.at < len(self.source):
            raise self.refuse("a closing bracket without an opening one", self.at)
        return node

    def peek(self, text: str) -> bool:
        return self.source.startswith(text, self.at)

    def alternatives(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refuse(f"groups nested more than {MAX_DEPTH} deep", self.at)
        branches = [self.sequence()]
        while self.peek("|"):
            self.at += 1
            branches.append(self.sequence())
        self.depth -= 1
        return branches[0] if len(branches) == 1 else Alt(tuple(branches))

    def sequence(self) -> Node:
        items: list[Node] = []
        while self.at < len(self.source) and not self.peek("|") and not self.peek(")"):
            start = self.at
            items.append(self.quantified(self.atom(), start))
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def quantified(self, node: Node, start: int) -> Node:
        bounds = self.quantifier()
        if bounds is None:
            return node
        if isinstance(node, Anchor):
            raise self.refuse("a repeated anchor", start)
        low, high = bounds
        if max(low, high or 0) > MAX_REPEAT:
            raise self.refuse(f"more than {MAX_REPEAT} repetitions", start)
        if high is not None and high < low:
            raise self.refuse("a repetition whose bounds are in the wrong order", start)
        if self.peek("?"):  # Lazy: another match, but the same language.
            self.at += 1
        elif self.peek("+"):
            raise self.refuse("a possessive repetition", self.at)
        if self.peek("*") or self.peek("+") or self.peek("?") or self.quantifier() is not None:
            raise self.refuse("a repetition of a repetition", self.at)
        return Repeat(node, low, high)

    def quantifier(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.peek(sign):
                self.at += 1
                return bounds
        match = _COUNT.match(self.source, self.at)
        if match is None or len(match[0]) > 20:
            if self.peek("{,") or match is not None:
                raise self.refuse("a repetition that dialects read differently", self.at)
            return None
        self.at = match.end()
        low = int(match[1])
        return low, (int(match[3]) if match[3] else None) if match[2] else low

    def atom(self) -> Node:
        start = self.at
        character = self.source[self.at]
        self.at += 1
        if character == "(":
            return self.group(start)
        if character == "[":
            return Chars(self.char_class(start))
        if character == ".":
            return Chars(_DOT)
        if character in "^$":
            return Anchor(character == "^")
        if character == "\\":
            if self.at < len(self.source) and self.source[self.at] in "AzZ":
                self.at += 1
                return Anchor(self.source[self.at - 1] == "A")
            return Chars(self.escape(start)[0])
        if character in "*+?" or (character == "{" and _COUNT.match(self.source, start)):
            raise self.refuse("a repetition of nothing", start)
        if 0xD800 <= ord(character) <= 0xDFFF:
            raise self.refuse("a lone surrogate", start)
        return Chars(((ord(character), ord(character)),))

    def group(self, start: int) -> Node:
        if self.peek("?"):
            named = _NAMED.match(self.source, self.at)
            if self.peek("?:"):
                self.at += 2
            elif named:
                self.at = named.end()
            else:
                signs = (s for s in _REFUSED_GROUPS if self.peek(s))
                sign = max(signs, key=len, default="")
                raise self.refuse(_REFUSED_GROUPS.get(sign, "a flag"), start)
        node = self.alternatives()
        if not self.peek(")"):
            raise self.refuse("a group without a closing bracket", start)
        self.at += 1
        return node

    def escape(self, start: int, *, in_class: bool = False) -> tuple[Charset, Charset]:
        """What the escape at hand surely matches, and what it may match in some dialect."""
        if self.at == len(self.source):
            raise self.refuse("a backslash at the end", start)
        letter = self.source[self.at]
        self.at += 1
        if letter in "dwsDWS":
            sure, possible = perl_class(letter.lower())
            if letter.isupper():
                return cs.complement(possible), cs.complement(sure)
            return sure, possible
        if letter in "pP":
            chars = self.unicode_class(start)
            chars = cs.complement(chars) if letter == "P" else chars
            return chars, chars
        code = self.code_point(letter, start, in_class)
        chars = ((code, code),)
        return chars, chars

    def unicode_class(self, start: int) -> Charset:
        match = re.compile(r"\{(?:gc=|General_Category=)?(\w+)\}|([A-Z])").match(
            self.source, self.at
        )
        chars = cs.category(match[1] or match[2]) if match else None
        if match is None or chars is None:
            raise self.refuse("a property of Unicode other than a general category", start)
        self.at = match.end()
        return chars

    def code_point(self, letter: str, start: int, in_class: bool) -> int:
        if letter in _CONTROL and letter != "a":
            return ord(_CONTROL[letter])
        if letter == "b" and in_class:
            return 8
        if letter in "xuU":
            digits = {"x": "[0-9A-Fa-f]{2}", "u": "[0-9A-Fa-f]{4}", "U": "[0-9A-Fa-f]{8}"}[letter]
            match = re.compile(rf"({digits})|\{{([0-9A-Fa-f]{{1,6}})\}}").match(
                self.source, self.at
            )
            if match is None:
                raise self.refuse("an escape without its hexadecimal digits", start)
            self.at = match.end()
            code = int(match[1] or match[2], 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise self.refuse("an escape that is no character", start)
            return code
        if letter.isdigit():
            follows = self.source[self.at : self.at + 1].isdigit()
            if letter == "0" and not follows:
                return 0
            raise self.refuse("a back-reference or an octal escape", start)
        if letter in _REFUSED_ESCAPES:
            raise self.refuse(_REFUSED_ESCAPES[letter], start)
        if letter.isalnum() or ord(letter) > 126:
            raise self.refuse(f"the escape \\{letter}, which dialects read differently", start)
        return ord(letter)

    def char_class(self, start: int) -> Charset:
        negated = self.peek("^")
        self.at += negated
        if self.peek("]"):
            raise self.refuse("an empty class, or one that begins with a bracket", start)
        sure: list[Charset] = []
        possible: list[Charset] = []
        while not self.peek("]"):
            if self.at == len(self.source):
                raise self.refuse("a class without a closing bracket", start)
            if self.peek("[:") or self.source[self.at : self.at + 2] in ("&&", "--", "~~", "||"):
                raise self.refuse("an operator that only some dialects have in a class", self.at)
            one = self.member(start)
            sure.append(one[0])
            possible.append(one[1])
        self.at += 1
        chars = cs.complement(cs.union(*possible)) if negated else cs.union(*sure)
        if not chars:
            raise self.refuse("a class without a character", start)
        return chars

    def member(self, start: int) -> tuple[Charset, Charset]:
        first = self.class_atom(start)
        ranged = self.peek("-") and not self.source.startswith("-]", self.at)
        if not ranged:
            return first
        if self.source.startswith("--", self.at):
            raise self.refuse("an operator that only some dialects have in a class", self.at)
        self.at += 1
        if self.at == len(self.source):
            raise self.refuse("a class without a closing bracket", start)
        last = self.class_atom(start)
        if not _single(first[0]) or not _single(last[0]):
            raise self.refuse("a range whose ends are not single characters", start)
        low, high = first[0][0][0], last[0][0][0]
        if low > high:
            raise self.refuse("a range whose ends are in the wrong order", start)
        chars = cs.charset([(low, high)])
        return chars, chars

    def class_atom(self, start: int) -> tuple[Charset, Charset]:
        at = self.at
        character = self.source[self.at]
        self.at += 1
        if character == "\\":
            return self.escape(at, in_class=True)
        if 0xD800 <= ord(character) <= 0xDFFF:
            raise self.refuse("a lone surrogate", at)
        chars = ((ord(character), ord(character)),)
        return chars, chars


def _single(chars: Charset) -> bool:
    return len(chars) == 1 and chars[0][0] == chars[0][1]


def _lower(node: Node, left: str, right: str, parser: _Parser) -> Node:
    """The same language without anchors.

    `left` and `right` say what is beside the node: "exact", the edge of the text; "search", the
    edge of the expression, beside which the text may go on; "inner", another node.
    """
    if isinstance(node, Anchor):
        side, other = (left, right) if node.start else (right, left)
        if side == "inner":
            raise parser.refuse("an anchor in the middle", 0)
        return _ANYTHING if other == "search" else EMPTY
    if isinstance(node, Alt):
        return Alt(tuple(_lower(item, left, right, parser) for item in node.items))
    if isinstance(node, Seq):
        return _lower_sequence(list(node.items), left, right, parser)
    if isinstance(node, Repeat):
        node = Repeat(_lower(node.item, "inner", "inner", parser), node.low, node.high)
    return _framed([node], left, right)


def _lower_sequence(items: list[Node], left: str, right: str, parser: _Parser) -> Node:
    while items and isinstance(items[0], Anchor) and items[0].start and left != "inner":
        left = "exact"
        items = items[1:]
    while items and isinstance(items[-1], Anchor) and not items[-1].start and right != "inner":
        right = "exact"
        items = items[:-1]
    if len(items) <= 1:
        return _lower(items[0], left, right, parser) if items else _framed([], left, right)
    first = _lower(items[0], left, "inner", parser)
    middle = [_lower(item, "inner", "inner", parser) for item in items[1:-1]]
    return Seq((first, *middle, _lower(items[-1], "inner", right, parser)))


def _framed(items: list[Node], left: str, right: str) -> Node:
    before = [_ANYTHING] if left == "search" else []
    after = [_ANYTHING] if right == "search" and (items or not before) else []
    whole = (*before, *items, *after)
    return whole[0] if len(whole) == 1 else Seq(whole)


def size(node: Node) -> int:
    """How many states the node takes, its repetitions written out."""
    if isinstance(node, Chars | Anchor):
        return 1
    if isinstance(node, Repeat):
        return size(node.item) * max(1, node.low, node.high or 0) + 1
    return 1 + sum(map(size, node.items))


def restrict(node: Node, allowed: Charset) -> Node | None:
    """The texts of the node that have no other characters; None if there is none."""
    if isinstance(node, Chars):
        chars = cs.intersection(node.chars, allowed)
        return Chars(chars) if chars else None
    if isinstance(node, Alt):
        kept = tuple(k for item in node.items if (k := restrict(item, allowed)) is not None)
        return Alt(kept) if kept else None
    if isinstance(node, Repeat):
        item = restrict(node.item, allowed)
        if item is None:
            return EMPTY if node.low == 0 else None
        return Repeat(item, node.low, node.high)
    assert isinstance(node, Seq)
    whole = [restrict(item, allowed) for item in node.items]
    return None if None in whole else Seq(tuple(item for item in whole if item is not None))


def to_rust(node: Node) -> str:
    """The node in the syntax of Rust's `regex`, for llguidance. ASCII, without `/` and spaces."""
    if isinstance(node, Chars):
        if _single(node.chars):
            return _code(node.chars[0][0])
        return f"[{''.join(_range(*r) for r in node.chars)}]"
    if isinstance(node, Alt):
        return f"(?:{'|'.join(map(to_rust, node.items))})"
    if isinstance(node, Repeat):
        high = "" if node.high is None else str(node.high)
        bounds = {"0,": "*", "1,": "+", "0,1": "?"}.get(f"{node.low},{high}")
        return f"(?:{to_rust(node.item)}){bounds or f'{{{node.low},{high}}}'}"
    assert isinstance(node, Seq)
    return "".join(map(to_rust, node.items)) or "(?:)"


def _range(low: int, high: int) -> str:
    return _code(low) if low == high else f"{_code(low)}-{_code(high)}"


def _code(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else rf"\x{{{code:x}}}"
