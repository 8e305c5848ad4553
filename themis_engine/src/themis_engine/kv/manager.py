"""Which sequence id holds what: reuse of prefixes, and eviction of those that nobody runs.

A sequence id is running, or idle and kept for its prefix, or empty. The manager decides and keeps
the books; what the model must do is queued as operations, in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from themis_core.messages import AdapterWeight
from themis_engine.kv.cells import CellLedger
from themis_engine.kv.radix import RadixTree
from themis_engine.runner import RunnerInfo

# Copying fewer tokens than this costs more than it saves.
_WORTH_COPYING = 8


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """What must be equal, beside the tokens, for a prefix to be shared."""

    adapters: tuple[AdapterWeight, ...] = ()
    salt: tuple[str | int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """The first `length` tokens of `source` become the content of the empty `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Only the first `length` tokens stay."""

    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Free:
    """Nothing stays. `tokens` are what it held under `key`, if that was kept for its prefix."""

    slot: int
    key: PrefixKey | None = None
    tokens: tuple[int, ...] = ()


Operation = Copy | Truncate | Free


@dataclass(frozen=True, slots=True)
class Reuse:
    """`slot` holds the first `length` tokens of a prompt; a running one will hold `planned`."""

    slot: int = -1
    length: int = 0
    planned: int = 0


@dataclass(slots=True)
class _Slot:
    key: PrefixKey
    tokens: list[int]


class KvManager:
    """The books of one runner's KV cache. All lengths are in tokens."""

    def __init__(self, info: RunnerInfo) -> None:
        self._info = info
        self._ledger = CellLedger(shares=info.shares_kv)
        self._tree = RadixTree()
        self._slots: dict[int, _Slot] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # Least recently used first.
        self._empty = set(range(info.max_sequences))
        self._operations: list[Operation] = []

    @property
    def used(self) -> int:
        """Cells that hold anything."""
        return self._ledger.used

    @property
    def used_by_running(self) -> int:
        """Cells of running sequences, a shared one counted once."""
        return self._ledger.cells_of(slot for slot in list(self._slots) if slot not in self._idle)

    @property
    def empty(self) -> bool:
        """True if no sequence id holds anything."""
        return not self._slots

    def length(self, slot: int) -> int:
        """Tokens that a sequence id holds."""
        return self._ledger.length(slot)

    def take_operations(self) -> list[Operation]:
        """What the model must do before anything else, in this order; each is told once."""
        operations, self._operations = self._operations, []
        return operations

    # --- running sequences -----------------------------------------------------------------------

    def look_up(self, key: PrefixKey, tokens: list[int]) -> Reuse:
        """The longest prefix of `tokens`, less the last of them, that is there or on its way."""
        best, length, planned = -1, 0, 0
        # The logits of the last token are wanted, so it is always computed.
        for depth, members in self._tree.matches(key, tokens[:-1]):
            if depth <= length:
                break
            for slot in members:
                held = self._ledger.length(slot)
                usable = self._usable(held, depth)
                if usable > length or (usable == length and slot in self._idle):
                    best, length = slot, usable
            if self._info.truncates:
                planned = max(planned, depth)
        if length < _WORTH_COPYING:
            return Reuse(planned=planned)
        return Reuse(best, length, max(planned, length))

    def is_idle(self, slot: int) -> bool:
        """True if it is only kept for its prefix."""
        return slot in self._idle

    def begin(
        self, key: PrefixKey, tokens: list[int], reuse: Reuse, *, take: bool = False
    ) -> int | None:
        """A sequence id that holds `reuse.length` of the tokens. None if all ids are running.

        With `take`, the idle id that holds them is used itself, and the rest of it is lost.
        """
        source = reuse.slot if reuse.length else None
        target = source if take else self._target(source, reuse.length)
        if target is None:
            return None
        if source is None:
            self._evict(target)
        elif target == source:
            del self._idle[source]
            if reuse.length < self._ledger.length(source):
                self.truncate(source, reuse.length)
        else:
            self._evict(target)
            if source in self._idle:
                self._idle.move_to_end(source)
            self._ledger.copy(source, target, reuse.length)
            self._operations.append(Copy(source, target, reuse.length))
        self._empty.discard(target)
        self._slots[target] = _Slot(key, tokens)
        self._tree.insert(key, tokens, target)
        return target

    def grow(self, slot: int, count: int) -> None:
        """`count` more tokens have been computed."""
        self._ledger.grow(slot, count)

    def truncate(self, slot: int, length: int) -> None:
        """Give back what is from `length` on."""
        self._ledger.truncate(slot, length)
        self._operations.append(Truncate(slot, length))

    def finish(self, slot: int, tokens: list[int]) -> None:
        """A sequence has ended: keep what it holds of `tokens` for those who begin alike."""
        held = tokens[: self._ledger.length(slot)]
        if len(held) < _WORTH_COPYING:
            self.release(slot)
            return
        key = self._slots[slot].key
        if self._info.truncates and not self._drop_redundant(slot, key, held):
            return
        self._slots[slot].tokens = held
        self._tree.insert(key, held, slot)
        self._idle[slot] = None

    def _drop_redundant(self, slot: int, key: PrefixKey, held: list[int]) -> bool:
        """Give up idle prefixes that `slot` holds too; or `slot` itself, then false."""
        for depth, members in list(self._tree.matches(key, held)):
            for other in [m for m in members if m in self._idle]:
                if self._ledger.length(other) <= depth:
                    self._evict(other, keep=False)
                elif depth == len(held):
                    self.release(slot)
                    return False
        return True

    def release(self, slot: int) -> None:
        """Give back all that a running sequence holds."""
        self._forget(slot)
        self._operations.append(Free(slot))

    def adopt(self, key: PrefixKey, tokens: list[int]) -> int | None:
        """An idle sequence id for a prefix that the caller brings back. None: there is no room."""
        if not self.make_room(len(tokens)):
            return None
        target = min(self._empty, default=next(iter(self._idle), None))
        if target is None:
            return None
        self._evict(target)
        self._empty.discard(target)
        self._slots[target] = _Slot(key, tokens)
        self._ledger.grow(target, len(tokens))
        self._tree.insert(key, tokens, target)
        self._idle[target] = None
        return target

    def borrow(self, length: int) -> int | None:
        """An empty sequence id for `length` tokens that are no prompt; then `give_back`."""
        cells = length if self._info.causal else 0  # Encoders keep nothing.
        if not self.make_room(cells):
            return None
        target = min(self._empty, default=next(iter(self._idle), None))
        if target is None:
            return None
        self._evict(target)
        self._empty.discard(target)
        self._ledger.grow(target, cells)
        return target

    def give_back(self, slot: int) -> None:
        """A borrowed sequence id is to be freed."""
        self._ledger.free(slot)
        self._empty.add(slot)
        self._operations.append(Free(slot))

    def drop(self, slot: int) -> None:
        """Give up an idle prefix."""
        self._evict(slot, keep=False)

    # --- room ------------------------------------------------------------------------------------

    def free_cells(self) -> int:
        """Cells that hold nothing."""
        return self._info.kv_capacity - self._ledger.used

    def make_room(self, cells: int, *, keep: int = -1) -> bool:
        """Evict idle prefixes until so many cells are free; `keep` stays.

        False, and nothing is evicted, if that would not be enough.
        """
        if cells <= self.free_cells():
            return True
        idle = [slot for slot in self._idle if slot != keep]
        staying = self._ledger.cells_of(slot for slot in self._slots if slot not in idle)
        if staying + cells > self._info.kv_capacity:
            return False
        while cells > self.free_cells():
            self._evict(idle.pop(0))
        return True

    def forget(self, applies: Callable[[PrefixKey], bool]) -> None:
        """Give up the idle prefixes whose key is such."""
        for slot in [s for s in self._idle if applies(self._slots[s].key)]:
            self._evict(slot, keep=False)

    def clear(self) -> None:
        """Give up all idle prefixes."""
        while self._idle:
            self._evict(next(iter(self._idle)))

    # --- inside ----------------------------------------------------------------------------------

    def _usable(self, held: int, depth: int) -> int:
        """How much a sequence of `held` tokens, of which `depth` match, is good for."""
        if self._info.truncates:
            return min(held, depth)
        return held if held <= depth else 0

    def _target(self, source: int | None, length: int) -> int | None:
        """The sequence id to use. Running ones never, and a prefix that is wanted last."""
        whole = source in self._idle and source is not None and length == self.length(source)
        if not self._info.shares_kv and len(self._slots) > len(self._idle):
            return self._nearest()
        if whole:
            return source
        if self._empty:
            return min(self._empty)
        others = [slot for slot in self._idle if slot != source]
        if others:
            return others[0]
        # Its tail is lost, but the alternative is to wait.
        return source if source in self._idle and self._info.truncates else None

    def _nearest(self) -> int | None:
        """The sequence id with most running neighbours; of several, an empty or old one.

        Runners without shared cells compute neighbours together: llama.cpp with a split cache gives
        1.6 times the tokens at 8 sequences. That is worth more than what is kept here.
        """
        age = {slot: i for i, slot in enumerate(self._idle)}  # Empty ones come before the oldest.
        running = self._slots.keys() - self._idle.keys()
        return min(
            self._empty | age.keys(),
            key=lambda s: (-((s - 1 in running) + (s + 1 in running)), age.get(s, -1), s),
            default=None,
        )

    def _evict(self, slot: int, *, keep: bool = True) -> None:
        """Empty an idle sequence id; the model may save its state first if `keep`."""
        if slot not in self._idle:
            return
        del self._idle[slot]
        held = self._forget(slot)
        self._operations.append(Free(slot, held.key, tuple(held.tokens)) if keep else Free(slot))

    def _forget(self, slot: int) -> _Slot:
        self._ledger.free(slot)
        self._tree.remove(slot)
        self._empty.add(slot)
        return self._slots.pop(slot)


def adapters_of(name: str) -> Callable[[PrefixKey], bool]:
    """Tells the keys that use an adapter."""
    return lambda key: any(adapter.name == name for adapter in key.adapters)
