"""Prompt lookup: what followed the last few tokens where they stood before.

The idea is that of Saxena 2023 (prompt lookup decoding): text that is copied from the prompt, or
repeats itself, can be guessed without a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from themis_engine.sequence import Sequence

_SIZES = (4, 2)  # Longer matches are better guesses, and tried first.


@dataclass(slots=True)
class _Index:
    """Where each run of tokens ended last; the first `length` tokens are indexed."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    length: int = 0


class PromptLookup:
    """A `Proposer` without a model."""

    def __init__(self) -> None:
        self._indexes: dict[Sequence, _Index] = {}

    @property
    def cost(self) -> float:
        """Seconds for one more token of all sequences: nothing worth counting."""
        return 0.0

    def propose(self, wanted: Mapping[Sequence, int]) -> None:
        """Fill in `drafts`, at most so many."""
        for sequence, count in wanted.items():
            sequence.drafts = self._guess(sequence, count) if count else []

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._indexes.pop(sequence, None)

    def close(self) -> None:
        """Nothing to release."""

    def _guess(self, sequence: Sequence, count: int) -> list[int]:
        tokens = sequence.tokens
        index = self._indexes.setdefault(sequence, _Index())
        # Up to the last token but one: the end of the text must not find itself.
        for end in range(index.length, len(tokens) - 1):
            for size in _SIZES:
                if end + 1 >= size:
                    index.ends[tuple(tokens[end + 1 - size : end + 1])] = end + 1
        index.length = max(index.length, len(tokens) - 1)
        for size in _SIZES:
            start = index.ends.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if start is not None:
                guess = tokens[start : start + count]
                # A repetition that is shorter than what is wanted goes on repeating.
                while guess and len(guess) < count:
                    guess += guess[: count - len(guess)]
                return guess
        return []
