"""The ledger of cells against sets of cells that are written out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from themis_engine.kv.cells import CellLedger

SEQUENCES = range(6)


class LedgerMachine(RuleBasedStateMachine):
    """Every cell has a number of its own, and a sequence is a list of them."""

    @initialize(shares=st.booleans())
    def begin(self, shares: bool) -> None:
        self.shares = shares
        self.ledger = CellLedger(shares=shares)
        self.numbers = itertools.count()
        self.cells: dict[int, list[int]] = {sequence: [] for sequence in SEQUENCES}

    @rule(sequence=st.sampled_from(SEQUENCES), count=st.integers(1, 7))
    def grow(self, sequence: int, count: int) -> None:
        self.ledger.grow(sequence, count)
        self.cells[sequence] += itertools.islice(self.numbers, count)

    @precondition(lambda self: not all(self.cells.values()) and any(self.cells.values()))
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from([s for s in SEQUENCES if self.cells[s]]))
        target = data.draw(st.sampled_from([s for s in SEQUENCES if not self.cells[s]]))
        length = data.draw(st.integers(1, len(self.cells[source])))
        # An emptied sequence still has a place in the books.
        self.ledger.free(target)
        self.ledger.copy(source, target, length)
        shared = self.cells[source][:length]
        fresh = list(itertools.islice(self.numbers, length))
        self.cells[target] = shared if self.shares else fresh

    @rule(sequence=st.sampled_from(SEQUENCES), length=st.integers(0, 20))
    def truncate(self, sequence: int, length: int) -> None:
        self.ledger.truncate(sequence, length)
        self.cells[sequence] = self.cells[sequence][:length]

    @rule(sequence=st.sampled_from(SEQUENCES))
    def free(self, sequence: int) -> None:
        self.ledger.free(sequence)
        self.cells[sequence] = []

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.ledger.used == len(set(itertools.chain(*self.cells.values())))
        for sequence, mine in self.cells.items():
            assert self.ledger.length(sequence) == len(mine)
        some = [0, 2, 3]
        together = set(itertools.chain(*(self.cells[s] for s in some)))
        assert self.ledger.cells_of(some) == len(together)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_shared_prefix_counts_once() -> None:
    ledger = CellLedger(shares=True)
    ledger.grow(0, 1000)
    for other in range(1, 32):
        ledger.copy(0, other, 900)
        ledger.grow(other, 10)
    assert ledger.used == 1000 + 31 * 10
    ledger.free(0)
    assert ledger.used == 900 + 31 * 10


@pytest.mark.parametrize("shares", [True, False])
def test_what_is_freed_twice_counts_once(shares: bool) -> None:
    ledger = CellLedger(shares=shares)
    ledger.grow(0, 5)
    ledger.free(0)
    ledger.free(0)
    assert ledger.used == 0
