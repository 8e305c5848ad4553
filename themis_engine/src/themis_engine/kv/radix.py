"""A radix tree over token ids: which sequences begin like this prompt, and how far.

Each edge carries a run of tokens; a sequence belongs to all nodes on its path. Trees of different
keys (adapters, tenants) never meet.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

Tokens = list[int]


class _Node:
    __slots__ = ("children", "label", "members", "parent")

    def __init__(self, parent: _Node | None, label: Tokens) -> None:
        self.parent = parent
        self.label = label
        self.children: dict[int, _Node] = {}
        self.members: set[int] = set()


class RadixTree:
    """Sequences by what they hold. `insert` again replaces what a sequence held."""

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Node] = {}
        self._ends: dict[int, tuple[Hashable, _Node]] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, member: int) -> bool:
        return member in self._ends

    def key_of(self, member: int) -> Hashable:
        """The key that a member was inserted under."""
        return self._ends[member][0]

    def insert(self, key: Hashable, tokens: Tokens, member: int) -> None:
        """Put a member at the end of the path of `tokens`."""
        self.remove(member)
        node = self._roots.setdefault(key, _Node(None, []))
        node.members.add(member)
        position = 0
        while position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                child = _Node(node, tokens[position:])
                node.children[tokens[position]] = child
                position = len(tokens)
            else:
                common = common_length(child.label, tokens, position)
                if common < len(child.label):
                    child = _split(child, common)
                position += common
            child.members.add(member)
            node = child
        self._ends[member] = (key, node)

    def remove(self, member: int) -> None:
        """Forget a member; nodes that nobody needs any more go."""
        key, end = self._ends.pop(member, (None, None))
        node = end
        while node is not None:
            node.members.discard(member)
            parent = node.parent
            if not node.members:
                if parent is None:
                    del self._roots[key]
                else:
                    del parent.children[node.label[0]]
            node = parent

    def matches(self, key: Hashable, tokens: Tokens) -> Iterator[tuple[int, set[int]]]:
        """Lengths of common prefixes with their members, the longest first, none of length 0.

        Each pair says: these members begin with so many of these tokens, and those of an earlier
        pair with more.
        """
        path: list[tuple[int, set[int]]] = []
        node = self._roots.get(key)
        position = 0
        while node is not None and position < len(tokens):
            child = node.children.get(tokens[position])
            if child is None:
                break
            common = common_length(child.label, tokens, position)
            position += common
            path.append((position, child.members))
            node = child if common == len(child.label) else None
        return reversed(path)


def _split(node: _Node, length: int) -> _Node:
    """Put a new node after the first `length` tokens of a node's label; return it."""
    assert node.parent is not None
    head = _Node(node.parent, node.label[:length])
    node.parent.children[head.label[0]] = head
    node.label = node.label[length:]
    node.parent = head
    head.children[node.label[0]] = node
    head.members = set(node.members)
    return head


def common_length(label: Tokens, tokens: Tokens, start: int) -> int:
    """How many tokens of `label` stand in `tokens` from `start` on."""
    low, high = 0, min(len(label), len(tokens) - start)
    if label[:high] == tokens[start : start + high]:  # At the speed of C, and the usual case.
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if label[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low
