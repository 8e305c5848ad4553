"""The radix tree against comparing everything with everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from themis_engine.kv.radix import RadixTree, common_length

# Few different tokens, so that paths part and meet often.
TOKENS = st.lists(st.integers(0, 2), max_size=12)
KEYS = st.sampled_from(["", "german"])


def common(a: list[int], b: list[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(map(len, (a, b)))
    )


class RadixMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self.held: dict[int, tuple[str, list[int]]] = {}

    @rule(member=st.integers(0, 5), key=KEYS, tokens=TOKENS)
    def insert(self, member: int, key: str, tokens: list[int]) -> None:
        self.tree.insert(key, tokens, member)
        self.held[member] = (key, tokens)

    @rule(member=st.integers(0, 5))
    def remove(self, member: int) -> None:
        self.tree.remove(member)
        self.held.pop(member, None)

    @rule(key=KEYS, tokens=TOKENS)
    def look_up(self, key: str, tokens: list[int]) -> None:
        found = list(self.tree.matches(key, tokens))
        depths = [depth for depth, _ in found]
        assert depths == sorted(set(depths), reverse=True)
        assert 0 not in depths
        # Each member appears first with exactly as much as it has in common.
        longest: dict[int, int] = {}
        for depth, members in found:
            for member in members:
                longest.setdefault(member, depth)
        expected = {
            member: common(held, tokens)
            for member, (k, held) in self.held.items()
            if k == key and common(held, tokens)
        }
        assert longest == expected

    @invariant()
    def members_are_known(self) -> None:
        assert len(self.tree) == len(self.held)
        for member, (key, _) in self.held.items():
            assert member in self.tree
            assert self.tree.key_of(member) == key

    def teardown(self) -> None:
        for member in list(self.held):
            self.tree.remove(member)
        assert not self.tree._roots, "an empty tree keeps nodes"


TestRadix = RadixMachine.TestCase
TestRadix.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(TOKENS, TOKENS, st.integers(0, 5))
def test_common_length(label: list[int], tokens: list[int], start: int) -> None:
    start = min(start, len(tokens))
    assert common_length(label, tokens, start) == common(label, tokens[start:])
