"""Which parts of a GBNF grammar may become lexemes.

llguidance reads lexemes first, each as long as it can be; GBNF knows no lexemes, any character may
belong to any rule. Making each character a lexeme of its own would be right, and far too slow. So
the largest regular parts of a grammar become lexemes, unless reading them greedily could go wrong:
if a lexeme A may be followed by a character with which another, or A itself, could go on instead.
Such a part is taken apart, down to single characters if need be.

The analysis is that of a parser generator (FIRST, FOLLOW; Aho et al., Compilers, 4.4) and of
position automata (Glushkov 1961).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_core.errors import InvalidRequest
from themis_engine.constraint import charset as cs
from themis_engine.constraint.charset import Charset
from themis_engine.constraint.gbnf import START, Expr, Ref
from themis_engine.constraint.regex import Alt, Chars, Node, Repeat, Seq, size

_MAX_POSITIONS = 300
_MAX_WORK = 400_000


@dataclass(slots=True)
class Positions:
    """A position automaton: a set of characters for each position, and which follow which."""

    chars: list[Charset] = field(default_factory=list)
    follow: list[set[int]] = field(default_factory=list)
    first: set[int] = field(default_factory=set)
    last: set[int] = field(default_factory=set)
    nullable: bool = True

    @classmethod
    def of(cls, node: Node) -> Positions:
        """The automaton of a regular expression."""
        self = cls()
        self.nullable, self.first, self.last = self._add(node)
        return self

    def _add(self, node: Node) -> tuple[bool, set[int], set[int]]:
        if isinstance(node, Chars):
            self.chars.append(node.chars)
            self.follow.append(set())
            position = {len(self.chars) - 1}
            return False, position, position
        if isinstance(node, Alt):
            parts = [self._add(item) for item in node.items]
            return (
                any(p[0] for p in parts),
                set().union(*(p[1] for p in parts)),
                set().union(*(p[2] for p in parts)),
            )
        if isinstance(node, Seq):
            return self._chain([self._add(item) for item in node.items])
        assert isinstance(node, Repeat)
        copies = max(node.low, node.high or 0, 1)
        parts = [self._add(node.item) for _ in range(copies)]
        if node.high is None:
            self._link(parts[-1][2], parts[-1][1])
        optional = [(p[0] or i >= node.low, p[1], p[2]) for i, p in enumerate(parts)]
        return self._chain([] if node.high == 0 else optional)

    def _chain(
        self, parts: list[tuple[bool, set[int], set[int]]]
    ) -> tuple[bool, set[int], set[int]]:
        nullable, first, last = True, set[int](), set[int]()
        for part_nullable, part_first, part_last in parts:
            self._link(last, part_first)
            first = first | part_first if nullable else first
            last = last | part_last if part_nullable else set(part_last)
            nullable = nullable and part_nullable
        return nullable, first, last

    def _link(self, before: set[int], behind: set[int]) -> None:
        for position in before:
            self.follow[position] |= behind

    def union(self, positions: set[int]) -> Charset:
        """All characters at these positions."""
        return cs.union(*(self.chars[p] for p in positions))


def continuations(a: Positions, b: Positions) -> tuple[Charset, int]:
    """With what `b` may go on behind a text of `a` that it has read too; and the work it took."""
    start = [(p, q) for p in a.first for q in b.first if cs.intersection(a.chars[p], b.chars[q])]
    seen = set(start)
    found: set[int] = set()
    while start:
        p, q = start.pop()
        if p in a.last:
            found |= b.follow[q]
        for pair in ((x, y) for x in a.follow[p] for y in b.follow[q]):
            if pair not in seen and cs.intersection(a.chars[pair[0]], b.chars[pair[1]]):
                seen.add(pair)
                start.append(pair)
    return b.union(found), len(seen) + len(a.first) * len(b.first)


class Lexemes:
    """Decides for the rules of a grammar; `regular(expr)` then says what is a lexeme.

    Raises `InvalidRequest` where the analysis would take too long.
    """

    def __init__(self, rules: dict[str, Expr], path: str) -> None:
        self.rules = rules
        self._path = path
        self._taken_apart: set[Expr] = set()
        self._inlined: dict[Expr, Node | None] = {}
        self._regular_rules: dict[str, Node | None] = {}
        self._automata: dict[Node, Positions] = {}
        self._conflicts: dict[tuple[Node, Node], Charset] = {}
        self._work = 0
        while self._improve():
            pass

    def regular(self, expr: Expr) -> Node | None:
        """The lexeme that an expression is, or None if it is to be taken apart."""
        if isinstance(expr, Chars):
            return expr
        return None if expr in self._taken_apart else self._inline(expr)

    def automaton(self, node: Node) -> Positions:
        """The position automaton of a lexeme."""
        if node not in self._automata:
            self._automata[node] = Positions.of(node)
        return self._automata[node]

    def _inline(self, expr: Expr) -> Node | None:
        """The expression without references, if it is regular and not too large."""
        if expr not in self._inlined:
            self._inlined[expr] = None  # What is met on the way to itself is not regular.
            node = self._inline_new(expr)
            fits = node is not None and size(node) <= _MAX_POSITIONS
            self._inlined[expr] = node if fits else None
        return self._inlined[expr]

    def _inline_new(self, expr: Expr) -> Node | None:
        if isinstance(expr, Chars):
            return expr
        if isinstance(expr, Ref):
            return self._inline(self.rules[expr.name])
        if isinstance(expr, Repeat):
            item = self._inline(expr.item)  # type: ignore[arg-type]
            return None if item is None else Repeat(item, expr.low, expr.high)
        items = [self._inline(item) for item in expr.items]  # type: ignore[arg-type]
        known = tuple(item for item in items if item is not None)
        if len(known) < len(items):
            return None
        return Seq(known) if isinstance(expr, Seq) else Alt(known)

    def _improve(self) -> bool:
        """Take one more round of conflicting expressions apart; False if there is none."""
        leaves = self._leaves()
        follow = _follow(self, leaves)
        conflicting: set[Expr] = set()
        for a, node_a in leaves.items():
            for b, node_b in leaves.items():
                if isinstance(b, Chars) or b in conflicting:
                    continue
                if cs.intersection(self._continuations(node_a, node_b), follow[a]):
                    conflicting.add(b)
        self._taken_apart |= conflicting
        return bool(conflicting)

    def _continuations(self, a: Node, b: Node) -> Charset:
        if (a, b) not in self._conflicts:
            chars, work = continuations(self.automaton(a), self.automaton(b))
            self._conflicts[a, b] = chars
            self._work += work
            if self._work > _MAX_WORK:
                message = "The grammar is too large to find its lexemes."
                raise InvalidRequest(message, field=self._path)
        return self._conflicts[a, b]

    def _leaves(self) -> dict[Expr, Node]:
        """The lexemes in use, by the expressions that they are."""
        found: dict[Expr, Node] = {}
        seen: set[str] = set()
        todo: list[Expr] = [Ref(START)]
        while todo:
            expr = todo.pop()
            node = self.regular(expr)
            if node is not None:
                found[expr] = node
            elif isinstance(expr, Ref):
                if expr.name not in seen:
                    seen.add(expr.name)
                    todo.append(self.rules[expr.name])
            else:
                todo += children(expr)
        return found


def children(expr: Expr) -> list[Expr]:
    """The expressions directly within one that is no reference."""
    if isinstance(expr, Repeat):
        return [expr.item]  # type: ignore[list-item]
    return list(expr.items) if isinstance(expr, Seq | Alt) else []  # type: ignore[arg-type]


def _follow(lexemes: Lexemes, leaves: dict[Expr, Node]) -> dict[Expr, Charset]:
    """For each lexeme, the characters that may stand behind it."""
    nullable: dict[str, bool] = {}
    first: dict[str, Charset] = {}
    after_rule: dict[str, Charset] = {}
    after: dict[Expr, Charset] = dict.fromkeys(leaves, cs.NONE)

    def begin(expr: Expr) -> tuple[bool, Charset]:
        if expr in leaves:
            automaton = lexemes.automaton(leaves[expr])
            return automaton.nullable, automaton.union(automaton.first)
        if isinstance(expr, Ref):
            return nullable.get(expr.name, False), first.get(expr.name, cs.NONE)
        parts = [begin(child) for child in children(expr)]
        if isinstance(expr, Alt):
            return any(p[0] for p in parts), cs.union(*(p[1] for p in parts))
        if isinstance(expr, Repeat):
            return parts[0][0] or expr.low == 0, parts[0][1]
        chars = cs.NONE
        for empty, these in parts:
            chars = cs.union(chars, these)
            if not empty:
                return False, chars
        return True, chars

    def pass_down(expr: Expr, behind: Charset) -> bool:
        """Note what stands behind an expression; True if that is news."""
        if expr in leaves or isinstance(expr, Ref):
            table, key = (after, expr) if expr in leaves else (after_rule, expr.name)  # type: ignore[union-attr]
            known = table.get(key, cs.NONE)  # type: ignore[arg-type]
            table[key] = cs.union(known, behind)  # type: ignore[index]
            return bool(table[key] != known)  # type: ignore[index]
        news = False
        if isinstance(expr, Repeat):
            behind = cs.union(behind, begin(children(expr)[0])[1])
        for child in reversed(children(expr)):
            news |= pass_down(child, behind)
            if isinstance(expr, Seq):
                empty, chars = begin(child)
                behind = cs.union(behind, chars) if empty else chars
        return news

    changed = True
    while changed:
        changed = False
        for name, body in lexemes.rules.items():
            empty, chars = begin(body)
            if (empty, chars) != (nullable.get(name), first.get(name)):
                nullable[name], first[name] = empty, chars
                changed = True
    changed = True
    while changed:
        changed = False
        for name, body in lexemes.rules.items():
            changed |= pass_down(body, after_rule.get(name, cs.NONE))
    return after
