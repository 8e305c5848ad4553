"""How far to speculate: as far as a guess is worth more than it costs.

A guess of probability p saves p tokens' worth of time and costs one more position in the step, and
what the proposer needs for it. Guess number i of a sequence is only right if those before it are,
so its probability is acceptance^i.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from themis_engine.sequence import Sequence
from themis_engine.step_cost import StepCost

_log = logging.getLogger("themis.engine")

_MEMORY = 0.15  # How much the newest verification counts in a sequence's acceptance.
_HOPE = (
    0.6  # What the acceptance drifts back to while nothing is guessed, so that it is tried again.
)
_DRIFT = 0.01
_UNTRIED = 2  # Guesses while nothing is known about costs.


class Proposer(Protocol):
    """Guesses tokens."""

    @property
    def cost(self) -> float:
        """Seconds for one more token of all sequences."""
        ...

    def propose(self, wanted: Mapping[Sequence, int]) -> None:
        """Fill in `drafts` of each sequence, at most so many."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Speculation:
    """A proposer, and how much it is asked for. `limit` bounds the guesses of one sequence."""

    def __init__(self, proposer: Proposer, limit: int) -> None:
        self._proposer = proposer
        self._limit = limit
        self._cost = StepCost()
        self._broken = False
        self.drafted = 0
        self.accepted = 0

    def propose(self, sequences: list[Sequence]) -> None:
        """Fill in `drafts` of those that will decode in the next step."""
        wanted = self.depths(sequences)
        for sequence in sequences:
            sequence.drafts = []
            if not wanted[sequence]:
                sequence.acceptance += _DRIFT * (_HOPE - sequence.acceptance)
        if not any(wanted.values()) or self._broken:
            return
        try:
            self._proposer.propose(wanted)
        # Guessing is only for speed: whatever is wrong with it, the answers need not suffer.
        except Exception:  # noqa: BLE001
            _log.exception("Speculation failed, and is switched off.")
            self._broken = True
            for sequence in sequences:
                sequence.drafts = []
        for sequence in sequences:
            if sequence.matcher is not None and sequence.drafts:
                sequence.drafts = sequence.drafts[: sequence.matcher.accepted(sequence.drafts)]

    def depths(self, sequences: list[Sequence]) -> dict[Sequence, int]:
        """How many guesses to ask for, by sequence."""
        count = len(sequences)
        step, slope = self._cost.of(count), self._cost.slope
        depths = dict.fromkeys(sequences, 0)
        if step is None or slope is None or not count:
            return {s: min(_UNTRIED, _most(s, self._limit)) for s in sequences}
        rate = count / max(step, 1e-9)  # Tokens per second without speculation.
        for length in range(1, self._limit + 1):
            # The proposer's step for this length is shared by all who go so far.
            able = [s for s in sequences if depths[s] == length - 1 and _most(s, length) == length]
            worth = [s for s in able if s.acceptance**length > rate * slope]
            gain = sum(s.acceptance**length for s in worth)
            if not worth or gain <= rate * (self._proposer.cost + slope * len(worth)):
                break
            depths.update(dict.fromkeys(worth, length))
        return depths

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """So many of the guesses were computed, and so many of them right."""
        if not drafted:
            return
        self.drafted += drafted
        self.accepted += accepted
        # Each right guess is a success, and the first wrong one a failure.
        tried = accepted + (accepted < drafted)
        kept = (1 - _MEMORY) ** tried
        sequence.acceptance = kept * sequence.acceptance + (1 - kept) * (accepted / tried)

    def observe(self, positions: int, seconds: float) -> None:
        """A step without prompts took so long: a prompt's chunk would outweigh all others."""
        self._cost.observe(positions, seconds)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._proposer.forget(sequence)

    def close(self) -> None:
        """Release the proposer."""
        self._proposer.close()


def _most(sequence: Sequence, limit: int) -> int:
    """Guesses that can still become output: the step itself gives one token."""
    return max(0, min(limit, sequence.limit - sequence.generated - 1))
