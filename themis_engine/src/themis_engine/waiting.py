"""Who is next: by priority, then the tenant that has been served least, then by arrival."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from themis_engine.sequence import Sequence

_Heap = list[tuple[int, int, Sequence]]


class WaitingQueue:
    """Waiting sequences, and what each tenant has been given, in computed tokens.

    A tenant that comes (back) begins at the least that any present one has had, so that nobody
    saves up a claim by staying away.
    """

    def __init__(self) -> None:
        self._heaps: dict[int, dict[str, _Heap]] = {}
        self._served: dict[str, int] = {}
        self._present: dict[str, int] = {}  # Sequences of each tenant, waiting or running.
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for tenants in list(self._heaps.values()):
            for heap in list(tenants.values()):
                yield from [entry[-1] for entry in heap]

    def enter(self, sequence: Sequence) -> None:
        """A sequence comes, from outside; `leave` when it is gone for good."""
        tenant = sequence.tenant
        if tenant not in self._present:
            self._served[tenant] = min(self._served.values(), default=0)
        self._present[tenant] = self._present.get(tenant, 0) + 1
        self.push(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence, waiting or not, is gone for good."""
        self.pull(sequence)
        tenant = sequence.tenant
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant], self._served[tenant]

    def push(self, sequence: Sequence) -> None:
        """Queue a sequence that has entered before."""
        heap = self._heaps.setdefault(sequence.priority, {}).setdefault(sequence.tenant, [])
        heapq.heappush(heap, (sequence.arrival, sequence.index, sequence))
        self._length += 1

    def pull(self, sequence: Sequence) -> bool:
        """Take a sequence out. False if it does not wait."""
        tenants = self._heaps.get(sequence.priority, {})
        heap = tenants.get(sequence.tenant, [])
        entry = next((e for e in heap if e[-1] is sequence), None)
        if entry is None:
            return False
        heap.remove(entry)
        heapq.heapify(heap)
        self._length -= 1
        if not heap:
            del tenants[sequence.tenant]
            if not tenants:
                del self._heaps[sequence.priority]
        return True

    def charge(self, sequence: Sequence, tokens: int) -> None:
        """So many tokens have been computed, or will be, for this sequence's tenant."""
        self._served[sequence.tenant] += tokens

    def in_order(self) -> Iterator[Sequence]:
        """The sequences, next first; what was charged meanwhile counts from the next one on.

        What it has yielded may be pulled; nothing else may change.
        """
        for priority in sorted(self._heaps, reverse=True):
            tenants = {t: iter(sorted(heap)) for t, heap in self._heaps[priority].items()}
            while tenants:
                tenant = min(tenants, key=lambda t: (self._served[t], t))
                entry = next(tenants[tenant], None)
                if entry is None:
                    del tenants[tenant]
                else:
                    yield entry[-1]
