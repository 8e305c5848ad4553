"""Who computes what in the next step: admission by free KV cache, decoding first, then prefill.

Every running sequence that has its prompt computed decodes in each step of its adapter set.
Prompts are prefilled in chunks, so that a long one delays nobody by more than a chunk, not even
who arrives while nobody decodes. A prompt that begins like another that is just being computed
waits for it and shares it. When the KV cache runs out, first the prefixes go that are only kept for
later; then the sequence that came last gives its cells back and is computed again later, with the
same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from themis_core.messages import AdapterWeight
from themis_engine.kv import KvManager, Reuse
from themis_engine.pace import PrefillPace
from themis_engine.runner import Batch, RunnerInfo
from themis_engine.sequence import Sequence
from themis_engine.waiting import WaitingQueue

# A prompt waits for another one that computes at least so many tokens which it needs too.
_WORTH_WAITING = 16
# Shorter rests overtake the prompt that has waited longest; in each so many steps it gets half.
_ELDEST_TURN = 4
# Of those that wait for another's prefix, so many are looked at in each step.
_MOST_DEFERRED = 64

AdapterSet = tuple[AdapterWeight, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """`count` tokens of a sequence, then its drafts if `drafted`; `first_row`: -1 for no logits."""

    sequence: Sequence
    count: int
    first_row: int
    drafted: int


@dataclass(frozen=True, slots=True)
class Step:
    """One batch, and what it means."""

    batch: Batch
    parts: list[Part]


class Scheduler:
    """Decides; it never calls the runner. `kv.take_operations` tells what must be done first.

    `parallel` bounds the running sequences, `pace` the prompt tokens of a step. With `keep`, the KV
    cache of finished sequences is kept for later prompts.
    """

    def __init__(
        self,
        info: RunnerInfo,
        pace: PrefillPace,
        *,
        parallel: int | None = None,
        keep: bool = True,
    ) -> None:
        self._info = info
        self.pace = pace
        self._parallel = min(parallel or info.max_sequences, info.max_sequences)
        self._keep = keep
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._served_at: dict[AdapterSet, int] = {}
        self._steps = 0
        self._overtaken = 0  # Steps in which the eldest prompt got nothing.
        self.kv = KvManager(info)
        self.preemptions = 0
        self.reused = 0

    @property
    def running(self) -> list[Sequence]:
        """Sequences that hold KV cache, in order of admission."""
        return self._running

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that hold none yet, in no particular order."""
        return list(self._waiting)

    @property
    def waiting_count(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return not self._running and not self._waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit in an empty cache."""
        self._waiting.enter(sequence)

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Forget a sequence, wherever it is. With `keep`, what it holds may be kept for others."""
        self._waiting.leave(sequence)
        if sequence.slot < 0:
            return
        self._running.remove(sequence)
        if keep and self._keep:
            self.kv.finish(sequence.slot, sequence.tokens)
        else:
            self.kv.release(sequence.slot)
        sequence.slot = -1
        sequence.computed = 0

    def decoding(self) -> list[Sequence]:
        """Those that will decode in the next step, if nobody else comes."""
        turn = self._turn()
        return [s for s in self._running if s.decoding and s.adapters == turn]

    def plan(self) -> Step | None:
        """The next step, or None if nothing can run. Then `commit` or `remove` what it holds."""
        self._make_room()
        self._admit()
        if not self._running:
            return None
        turn = self._turn()
        self._steps += 1
        self._served_at[turn] = self._steps
        mine = [s for s in self._running if s.adapters == turn]
        counts = self._prefill([s for s in mine if not s.decoding], mine)
        drafts = self._drafts([s for s in mine if s.decoding], sum(counts.values()))
        counts |= dict.fromkeys(drafts, 1)
        return _build(counts, drafts, turn)

    def commit(self, step: Step) -> None:
        """The step's tokens, drafts included, are in the KV cache."""
        for part in step.parts:
            added = part.count + part.drafted
            part.sequence.computed += added
            self.kv.grow(part.sequence.slot, added)
            if part.first_row >= 0:
                self._waiting.charge(part.sequence, 1)

    def retract(self, sequence: Sequence) -> None:
        """Give back the cells of drafts that were wrong."""
        length = len(sequence.tokens) - 1
        if sequence.computed > length:
            sequence.computed = length
            self.kv.truncate(sequence.slot, length)

    # --- the parts of a plan ---------------------------------------------------------------------

    def _turn(self) -> AdapterSet:
        """The adapter set that has waited longest: each comes once in as many steps as there are.

        llama.cpp and others apply adapters to a whole batch, so sets cannot be mixed in one.
        """
        sets = dict.fromkeys(sequence.adapters for sequence in self._running)
        if len(self._served_at) > 4 * len(sets) + 16:
            self._served_at = {k: v for k, v in self._served_at.items() if k in sets}
        return min(sets, key=lambda s: self._served_at[s], default=())

    def _prefill(self, prompts: list[Sequence], mine: list[Sequence]) -> dict[Sequence, int]:
        """How many prompt tokens each may compute: short rests first, but the eldest goes on.

        Prompts that are completed by it may take a step beyond the pace, to twice as much: each
        gets its first token from it.
        """
        room = self._info.max_batch - (len(mine) - len(prompts))
        whole, part = min(room, 2 * self.pace.tokens), min(room, self.pace.tokens)
        counts: dict[Sequence, int] = {}
        given = 0
        eldest = min(prompts, key=lambda s: s.arrival, default=None)
        if eldest is not None and self._overtaken >= _ELDEST_TURN - 1:
            given = counts[eldest] = min(_missing(eldest), -(-part // 2))
        for sequence in sorted(prompts, key=lambda s: (_missing(s), s.arrival)):
            more = _missing(sequence) - counts.get(sequence, 0)
            if given + more > whole:
                more = max(0, part - given)
            given += more
            counts[sequence] = counts.get(sequence, 0) + more
        self._overtaken = self._overtaken + 1 if eldest and not counts[eldest] else 0
        return {sequence: count for sequence, count in counts.items() if count}

    def _drafts(self, decoding: list[Sequence], prefilled: int) -> dict[Sequence, int]:
        """How many drafts of each are computed: as far as batch and free cells go."""
        room = self._info.max_batch - prefilled - len(decoding)
        room = min(room, self.kv.free_cells() - self._missing_cells())
        drafts: dict[Sequence, int] = {}
        for sequence in decoding:
            drafts[sequence] = max(0, min(len(sequence.drafts), room))
            room -= drafts[sequence]
        return drafts

    def _missing_cells(self) -> int:
        """Cells that the running sequences will need for the tokens that they have."""
        return sum(_missing(sequence) for sequence in self._running)

    def _admit(self) -> None:
        if not self._waiting or len(self._running) >= self._parallel:
            return
        missing = self._missing_cells()
        deferred = 0
        for sequence in self._waiting.in_order():
            if len(self._running) >= self._parallel or deferred >= _MOST_DEFERRED:
                return
            reuse = self.kv.look_up(sequence.key, sequence.tokens)
            if reuse.planned - reuse.length >= _WORTH_WAITING:
                deferred += 1
                continue
            # One spare cell for each running sequence, or one would be preempted at once.
            spare = missing + len(self._running)
            slot, reuse = self._begin(sequence, reuse, spare)
            if slot is None:
                return
            self._waiting.pull(sequence)
            # At once, or all that are admitted together could be of one tenant.
            self._waiting.charge(sequence, len(sequence.tokens) - reuse.length)
            self._running.append(sequence)
            self._served_at.setdefault(sequence.adapters, self._steps)
            sequence.slot, sequence.computed = slot, reuse.length
            self.reused += reuse.length
            missing += _missing(sequence)

    def _begin(self, sequence: Sequence, reuse: Reuse, spare: int) -> tuple[int | None, Reuse]:
        """Find a place with room for a sequence, beside so many cells that others need.

        Its prefix is copied if there is room for that; else taken over; else it is computed again.
        """
        key, tokens = sequence.key, sequence.tokens
        rest = len(tokens) - reuse.length
        if reuse.length:
            copied = rest if self._info.shares_kv else len(tokens)
            if self.kv.make_room(spare + copied, keep=reuse.slot):
                return self.kv.begin(key, tokens, reuse), reuse
            if self.kv.is_idle(reuse.slot) and self.kv.make_room(spare + rest, keep=reuse.slot):
                return self.kv.begin(key, tokens, reuse, take=True), reuse
        if self.kv.make_room(spare + len(tokens)):
            return self.kv.begin(key, tokens, Reuse()), Reuse()
        return None, reuse

    def _make_room(self) -> None:
        """See that all tokens of the running sequences fit, whoever must go for it."""
        while self._running and not self.kv.make_room(self._missing_cells()):
            victim = max(self._running, key=lambda s: (-s.priority, s.arrival, s.index))
            self._running.remove(victim)
            self.kv.release(victim.slot)
            victim.slot = -1
            victim.computed = 0
            self._waiting.push(victim)
            self.preemptions += 1


def _missing(sequence: Sequence) -> int:
    return len(sequence.tokens) - sequence.computed


def _build(counts: dict[Sequence, int], drafts: dict[Sequence, int], adapters: AdapterSet) -> Step:
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    logit_rows: list[int] = []
    parts: list[Part] = []
    # By sequence id: runners can compute neighbours in one piece.
    for sequence in sorted(counts, key=lambda s: s.slot):
        count, drafted = counts[sequence], drafts.get(sequence, 0)
        start, end = sequence.computed, sequence.computed + count
        tokens += sequence.tokens[start:end]
        tokens += sequence.drafts[:drafted]
        positions += range(start, end + drafted)
        sequences += [sequence.slot] * (count + drafted)
        first_row = -1
        if end == len(sequence.tokens):
            first_row = len(logit_rows)
            logit_rows += range(len(tokens) - 1 - drafted, len(tokens))
        parts.append(Part(sequence, count, first_row, drafted))
    batch = Batch(
        tokens=np.array(tokens, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
        sequences=np.array(sequences, dtype=np.int32),
        logit_rows=np.array(logit_rows, dtype=np.int32),
        adapters=adapters,
    )
    return Step(batch, parts)
