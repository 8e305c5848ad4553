"""GBNF rules written in llguidance's Lark."""

from __future__ import annotations

from themis_core.errors import InvalidRequest
from themis_engine.constraint.gbnf import START, Expr, Ref
from themis_engine.constraint.gbnf_lexemes import Lexemes, children
from themis_engine.constraint.regex import Alt, Node, Repeat, Seq, to_rust


def convert(rules: dict[str, Expr], path: str) -> str:
    """The same language in Lark. Raises `InvalidRequest`, naming a rule that never ends."""
    reachable = _reachable(rules)
    finite = _finite(rules)
    for name in reachable:
        if name not in finite:
            raise InvalidRequest(f"The rule {name} never ends: no text satisfies it.", field=path)
    writer = _Writer({name: rules[name] for name in reachable}, path)
    return writer.grammar()


def _reachable(rules: dict[str, Expr]) -> list[str]:
    found = [START]
    todo: list[Expr] = [rules[START]]
    while todo:
        expr = todo.pop()
        if isinstance(expr, Ref) and expr.name not in found:
            found.append(expr.name)
            todo.append(rules[expr.name])
        todo += children(expr)
    return found


def _finite(rules: dict[str, Expr]) -> set[str]:
    """Rules that some finite text satisfies."""

    def ends(expr: Expr) -> bool:
        if isinstance(expr, Ref):
            return expr.name in found
        if isinstance(expr, Repeat) and expr.low == 0:
            return True
        parts = map(ends, children(expr))
        return any(parts) if isinstance(expr, Alt) else all(parts)

    found: set[str] = set()
    while new := {name for name, body in rules.items() if name not in found and ends(body)}:
        found |= new
    return found


class _Writer:
    def __init__(self, rules: dict[str, Expr], path: str) -> None:
        self._rules = rules
        self._lexemes = Lexemes(rules, path)
        self._names = {name: f"r{i}" for i, name in enumerate(rules)}
        self._terminals: dict[Node, str] = {}
        self._wanted: list[str] = []

    def grammar(self) -> str:
        lines = [f"start: {self._write(Ref(START))}"]
        done: set[str] = set()
        while self._wanted:
            name = self._wanted.pop()
            if name not in done:
                done.add(name)
                lines.append(f"{self._names[name]}: {self._write(self._rules[name])}")
        for node, name in self._terminals.items():
            # A lexeme is never empty; where it may be, its use is optional.
            empty = self._lexemes.automaton(node).nullable
            lines.append(f"{name}: /{to_rust(node)}/{' & /(?s:.)+/' if empty else ''}")
        return "\n".join(lines) + "\n"

    def _write(self, expr: Expr) -> str:
        node = self._lexemes.regular(expr)
        if node is not None:
            return self._terminal(node)
        if isinstance(expr, Ref):
            self._wanted.append(expr.name)
            return self._names[expr.name]
        parts = [self._write(child) for child in children(expr)]
        if isinstance(expr, Alt):
            return f"({' | '.join(parts)})"
        if isinstance(expr, Seq):
            return f"({' '.join(parts)})" if parts else '""'
        assert isinstance(expr, Repeat)
        high = "" if expr.high is None else str(expr.high)
        signs = {"0,": "*", "1,": "+", "0,1": "?"}
        sign = signs.get(f"{expr.low},{high}", f"{{{expr.low},{high}}}")
        return f"({parts[0]}{sign})"

    def _terminal(self, node: Node) -> str:
        automaton = self._lexemes.automaton(node)
        if not automaton.chars:
            return '""'
        name = self._terminals.setdefault(node, f"T{len(self._terminals)}")
        return f"({name}?)" if automaton.nullable else name
