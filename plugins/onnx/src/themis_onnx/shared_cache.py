"""A KV cache in buffers that grouped-query attention reads and extends in place.

Each tensor of the cache is an array (rows, heads, room, head size); a sequence owns a row, and its
tokens lie at the row's beginning. The graph computes a range of rows at once, each with its own
length, which it takes from the sums of the attention mask's rows. So the sequences of a step are
kept in neighbouring rows, and a prefix or a shorter sequence needs no more than another length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from themis_onnx.signature import TYPES
from themis_onnx.steps import Array, Steps

_GROWTH = 1.5  # Copying all tokens each time the cache grows by a step would add up.


class SharedCache:
    """Rows for `sequences` sequences; `held` are their lengths. Checks nothing.

    Memory is taken as it is written: the system gives the pages of fresh arrays then.
    """

    def __init__(self, steps: Steps, sequences: int, context: int, step: int) -> None:
        self.held = np.zeros(sequences, np.int64)
        self._steps = steps
        self._step = step
        self._context = context
        self._rows = np.arange(sequences)  # By sequence.
        self._owners = np.arange(sequences)  # By row.
        self._room = 0
        # Another object with each set of buffers: bindings to others, of this cache or of another
        # one of the same model, must never be taken for bindings to these.
        self._generation = object()
        self._buffers: list[Array] = []
        self._reallocate(step)

    def extend(self, sequence: int, tokens: Array, keep: int) -> Array:
        """Compute the next tokens of one sequence; logits (kept, vocabulary)."""
        row, past = int(self._rows[sequence]), int(self.held[sequence])
        end = past + len(tokens)
        self._make_room(end)
        logits = self._steps.run(
            "extend",
            tokens[None],
            np.ones((1, end), np.int64),
            np.arange(past, end, dtype=np.int64)[None],
            keep,
            (self._generation, row, row + 1),
            lambda io: self._bind(io, row, row + 1),
        )
        self.held[sequence] = end
        found: Array = logits[0]
        return found

    def decode(self, sequences: Sequence[int], tokens: Array) -> Array:
        """Compute one token of each sequence, all different; logits (n, vocabulary)."""
        count = len(sequences)
        chosen = np.asarray(sequences)
        self._make_room(int(self.held[chosen].max()) + 1)
        low = self._gather(chosen)
        order = self._rows[chosen] - low  # Where each sequence is in the range.
        past = np.empty(count, np.int64)
        past[order] = self.held[chosen]
        ids = np.empty((count, 1), np.int64)
        ids[order, 0] = tokens
        logits = self._steps.run(
            "decode",
            ids,
            (np.arange(past.max() + 1) <= past[:, None]).astype(np.int64),
            past[:, None],
            1,
            (self._generation, low, low + count),
            lambda io: self._bind(io, low, low + count),
        )
        self.held[chosen] += 1
        last: Array = logits[:, -1]
        return last if np.array_equal(order, np.arange(count)) else last[order]

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first tokens of `source` the content of the empty `target`."""
        start, end = self._rows[source], self._rows[target]
        for buffer in self._buffers:
            buffer[end, :, :length] = buffer[start, :, :length]
        self.held[target] = length

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all from `length` on."""
        self.held[sequence] = min(length, self.held[sequence])

    def free(self, sequence: int) -> None:
        """Empty a sequence. When all are empty, the memory is given back."""
        self.held[sequence] = 0
        if self._room > self._step and not self.held.any():
            self._reallocate(self._step)

    def _bind(self, io: Any, low: int, high: int) -> None:
        for buffer, cached in zip(self._buffers, self._steps.signature.cache, strict=True):
            number = TYPES[cached.kind][1]
            part = buffer[low:high]
            shape, place = list(part.shape), part.ctypes.data
            io.bind_input(cached.past, "cpu", 0, number, shape, place)
            io.bind_output(cached.present, "cpu", 0, number, shape, place)

    def _make_room(self, length: int) -> None:
        if length > self._room:
            wanted = max(length, int(self._room * _GROWTH))
            self._reallocate(max(length, min(self._context, wanted)))

    def _reallocate(self, length: int) -> None:
        """Buffers with room for so many tokens, rounded up; what is held moves."""
        room = -(-length // self._step) * self._step
        buffers: list[Array] = []  # Nothing is changed before all of them could be made.
        for i, cached in enumerate(self._steps.signature.cache):
            shape = (len(self.held), cached.heads, room, cached.size)
            fresh = np.zeros(shape, TYPES[cached.kind][0])
            for row, owner in enumerate(self._owners.tolist()):
                held = int(self.held[owner])
                if held:
                    fresh[row, :, :held] = self._buffers[i][row, :, :held]
            buffers.append(fresh)
        self._buffers = buffers
        self._room = room
        self._generation = object()

    def _gather(self, sequences: Array) -> int:
        """See that the sequences lie in neighbouring rows; gives the first of these.

        The range that has most of them stays, so that fewest must move.
        """
        count = len(sequences)
        wanted = np.zeros(len(self.held), np.int64)
        wanted[self._rows[sequences]] = 1
        inside = np.convolve(wanted, np.ones(count, np.int64), "valid")
        low = int(inside.argmax())
        if inside[low] < count:
            targets = [r for r in range(low, low + count) if not wanted[r]]
            outside = [r for r in np.flatnonzero(wanted) if not low <= r < low + count]
            for row, other in zip(targets, outside, strict=True):
                self._swap(row, int(other))
        return low

    def _swap(self, row: int, other: int) -> None:
        one, two = self._owners[row], self._owners[other]
        first, second = int(self.held[one]), int(self.held[two])
        for buffer in self._buffers:
            moved = buffer[row, :, :first].copy()
            buffer[row, :, :second] = buffer[other, :, :second]
            buffer[other, :, :first] = moved
        self._owners[row], self._owners[other] = two, one
        self._rows[one], self._rows[two] = other, row
