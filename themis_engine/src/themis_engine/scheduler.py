"""Who computes what in the next step: admission by free KV cache, decoding first, then prefill.

Every running sequence that has its prompt computed decodes one token per step. Prompts are
prefilled in chunks beside them, so that a long prompt delays nobody by more than a chunk. When
the KV cache runs out, the sequence that came last gives its cells back and is computed again
later, with the same tokens.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from themis_engine.runner import Batch, RunnerInfo
from themis_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """One batch, and what it means: (sequence, number of its tokens), and whose logits come."""

    batch: Batch
    parts: list[tuple[Sequence, int]]
    sampled: list[Sequence]


class Scheduler:
    """Decides; it never calls the runner. `take_evicted` tells which sequence ids to free."""

    def __init__(self, info: RunnerInfo, prefill_chunk: int) -> None:
        self._info = info
        self._prefill_chunk = prefill_chunk
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._running: list[Sequence] = []
        # A heap: low sequence ids are used again first, so that those in use stay neighbours.
        self._slots = list(range(info.max_sequences))
        self._evicted: list[int] = []
        self.preemptions = 0

    @property
    def running(self) -> list[Sequence]:
        """Sequences that hold KV cache, in order of admission."""
        return self._running

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that hold none yet, in no particular order."""
        return [sequence for _, sequence in self._waiting]

    @property
    def kv_used(self) -> int:
        """Tokens in the KV cache."""
        return sum(sequence.computed for sequence in self._running)

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return not self._running and not self._waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit in an empty cache."""
        heapq.heappush(self._waiting, (sequence.rank, sequence))

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is. Its sequence id is then to be freed."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._give_back(sequence)
        else:
            self._waiting = [item for item in self._waiting if item[1] is not sequence]
            heapq.heapify(self._waiting)

    def take_evicted(self) -> list[int]:
        """Sequence ids whose KV cache must be freed before the next step; each is told once."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def plan(self) -> Step | None:
        """The next step, or None if nothing can run. Then `commit` or `remove` what it holds."""
        self._preempt()
        self._admit()
        decoding = [s for s in self._running if s.computed == len(s.tokens) - 1]
        parts = [(sequence, 1) for sequence in decoding]
        budget = self._info.max_batch - len(parts)
        if decoding:
            budget = min(budget, self._prefill_chunk)
        for sequence in self._running:
            missing = len(sequence.tokens) - sequence.computed
            if missing > 1 and budget > 0:
                count = min(missing, budget)
                parts.append((sequence, count))
                budget -= count
        # By sequence id: runners can compute neighbours in one piece (llama.cpp with a split KV
        # cache does; measured, 1.6 times the tokens at 8 sequences).
        parts.sort(key=lambda part: part[0].slot)
        return _build(parts) if parts else None

    def commit(self, step: Step) -> None:
        """The step's tokens are in the KV cache."""
        for sequence, count in step.parts:
            sequence.computed += count

    def _committed(self) -> int:
        """Tokens that the running sequences will hold once each has been computed."""
        return sum(len(sequence.tokens) for sequence in self._running)

    def _admit(self) -> None:
        committed = self._committed()
        while self._waiting and self._slots:
            sequence = self._waiting[0][1]
            # One spare cell for each running sequence, or it would be preempted at once.
            spare = len(self._running)
            if committed + len(sequence.tokens) + spare > self._info.kv_capacity:
                return
            heapq.heappop(self._waiting)
            sequence.slot = heapq.heappop(self._slots)
            self._running.append(sequence)
            committed += len(sequence.tokens)

    def _preempt(self) -> None:
        while len(self._running) > 1 and self._committed() > self._info.kv_capacity:
            victim = max(self._running, key=lambda sequence: sequence.rank)
            self._running.remove(victim)
            self._give_back(victim)
            self.add(victim)
            self.preemptions += 1

    def _give_back(self, sequence: Sequence) -> None:
        self._evicted.append(sequence.slot)
        heapq.heappush(self._slots, sequence.slot)
        sequence.slot = -1
        sequence.computed = 0


def _build(parts: list[tuple[Sequence, int]]) -> Step:
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    logit_rows: list[int] = []
    sampled: list[Sequence] = []
    for sequence, count in parts:
        start, end = sequence.computed, sequence.computed + count
        tokens += sequence.tokens[start:end]
        positions += range(start, end)
        sequences += [sequence.slot] * count
        if end == len(sequence.tokens):
            logit_rows.append(len(tokens) - 1)
            sampled.append(sequence)
    batch = Batch(
        tokens=np.array(tokens, dtype=np.int32),
        positions=np.array(positions, dtype=np.int32),
        sequences=np.array(sequences, dtype=np.int32),
        logit_rows=np.array(logit_rows, dtype=np.int32),
    )
    return Step(batch, parts, sampled)
