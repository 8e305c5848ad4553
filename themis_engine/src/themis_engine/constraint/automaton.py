"""A finite automaton for checking texts: time linear in the text, whatever the expression.

Python's own `re` backtracks and holds the interpreter's lock; a hostile expression would stall all.
"""

from __future__ import annotations

from themis_engine.constraint import charset as cs
from themis_engine.constraint.charset import Charset
from themis_engine.constraint.regex import Alt, Chars, Node, Repeat, Seq

_MAX_CACHED = 20_000


class Automaton:
    """Thompson's construction (1968); sets of states are cached as they come up."""

    def __init__(self, node: Node) -> None:
        self._chars: list[Charset | None] = []
        self._next: list[list[int]] = []
        start, self._end = self._build(node)
        self._start = self._closure([start])
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, text: str) -> bool:
        """True if the whole text is in the language."""
        states = self._start
        for character in text:
            key = (states, character)
            known = self._steps.get(key)
            if known is None:
                known = self._step(states, character)
                if len(self._steps) < _MAX_CACHED:
                    self._steps[key] = known
            states = known
            if not states:
                return False
        return self._end in states

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        reached: list[int] = []
        for state in states:
            chars = self._chars[state]
            if chars is not None and cs.contains(chars, character):
                reached += self._next[state]
        return self._closure(reached)

    def _closure(self, states: list[int]) -> frozenset[int]:
        found = set(states)
        while states:
            state = states.pop()
            if self._chars[state] is None:
                new = [s for s in self._next[state] if s not in found]
                found.update(new)
                states += new
        return frozenset(found)

    def _state(self, chars: Charset | None = None) -> int:
        self._chars.append(chars)
        self._next.append([])
        return len(self._chars) - 1

    def _build(self, node: Node) -> tuple[int, int]:
        """States for a node: its first and its last, between which its texts lie."""
        if isinstance(node, Chars):
            first, last = self._state(node.chars), self._state()
            self._next[first].append(last)
            return first, last
        first = last = self._state()
        if isinstance(node, Seq):
            for item in node.items:
                last = self._append(last, item)
        elif isinstance(node, Alt):
            last = self._state()
            for item in node.items:
                begin, end = self._build(item)
                self._next[first].append(begin)
                self._next[end].append(last)
        else:
            assert isinstance(node, Repeat)
            last = self._repeat(first, node)
        return first, last

    def _append(self, last: int, item: Node) -> int:
        begin, end = self._build(item)
        self._next[last].append(begin)
        return end

    def _repeat(self, last: int, node: Repeat) -> int:
        for _ in range(node.low):
            last = self._append(last, node.item)
        end = self._state()
        if node.high is None:
            loop = self._state()
            self._next[last].append(loop)
            self._next[self._append(loop, node.item)].append(loop)
            last = loop
        else:
            for _ in range(node.high - node.low):
                self._next[last].append(end)
                last = self._append(last, node.item)
        self._next[last].append(end)
        return end
