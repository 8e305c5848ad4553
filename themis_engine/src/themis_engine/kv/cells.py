"""How many cells of the KV cache are in use, where sequences share the cells of a prefix.

A cell holds keys and values of one token. With a unified cache, copying a prefix only adds a
sequence to its cells, so a shared prefix counts once. The ledger is a tree of runs of cells: each
sequence is the path from its last run up to the root, and runs split where paths part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Run:
    """Cells in a row. `users` counts the runs that follow it and the sequences that end here."""

    parent: _Run | None
    length: int
    users: int


class CellLedger:
    """Cells by sequence id. With `shares` false, a copy has cells of its own."""

    def __init__(self, *, shares: bool) -> None:
        self._shares = shares
        self._root = _Run(None, 0, 1)
        self._ends: dict[int, _Run] = {}
        self._lengths: dict[int, int] = {}
        self.used = 0

    def length(self, sequence: int) -> int:
        """Tokens that a sequence holds."""
        return self._lengths.get(sequence, 0)

    def grow(self, sequence: int, count: int) -> None:
        """Add cells at the end of a sequence."""
        end = self._ends.get(sequence)
        if end is None:
            end = self._ends[sequence] = _Run(self._root, 0, 1)
            self._root.users += 1
        elif end.users > 1:
            # Its place as a user of the shared run passes to the run that follows.
            end = self._ends[sequence] = _Run(end, 0, 1)
        end.length += count
        self._lengths[sequence] = self.length(sequence) + count
        self.used += count

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` cells of `source` the content of the empty `target`."""
        if not self._shares:
            self.grow(target, length)
            return
        run = self._split(self._ends[source], self.length(source) - length)
        run.users += 1
        self._ends[target] = run
        self._lengths[target] = length

    def truncate(self, sequence: int, length: int) -> None:
        """Give back all from `length` on."""
        cut = self.length(sequence) - length
        if cut <= 0:
            return
        end = self._ends[sequence]
        run = self._split(end, cut)
        run.users += 1
        self._ends[sequence] = run
        self._lengths[sequence] = length
        self._drop(end)

    def free(self, sequence: int) -> None:
        """Give back all of a sequence."""
        end = self._ends.pop(sequence, None)
        self._lengths.pop(sequence, None)
        if end is not None:
            self._drop(end)

    def cells_of(self, sequences: Iterable[int]) -> int:
        """Cells that these sequences hold together, each counted once."""
        seen: set[_Run] = set()
        for sequence in sequences:
            run = self._ends.get(sequence)
            while run is not None and run not in seen:
                seen.add(run)
                run = run.parent
        return sum(run.length for run in seen)

    def _split(self, run: _Run, cut: int) -> _Run:
        """The run that ends `cut` cells before the end of `run`."""
        while cut >= run.length and run.parent is not None:
            cut -= run.length
            run = run.parent
        if cut == 0:
            return run
        head = _Run(run.parent, run.length - cut, 1)
        run.parent, run.length = head, cut
        return head

    def _drop(self, run: _Run) -> None:
        """One user less; runs without any are given back, from the end on."""
        current: _Run | None = run
        while current is not None:
            current.users -= 1
            if current.users:
                return
            self.used -= current.length
            current = current.parent
