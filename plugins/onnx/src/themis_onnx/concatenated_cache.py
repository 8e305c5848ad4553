"""A KV cache for graphs that take past keys and values, and give them back with the new ones added.

Sequences that are computed together lie in one group: arrays (rows, heads, length, head size), each
row filled up with zeros on the left, which the attention mask hides. A step reads the group's
arrays and writes longer ones, in memory that two steps take turns with. A sequence that is not
computed together with others is a group by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from themis_onnx.signature import TYPES
from themis_onnx.steps import Array, Steps

_SPARE = 64  # Tokens that a group's memory has room for before new memory is needed.


class _Group:
    """Some sequences' past. `members[row]` is -1 where a sequence has left."""

    def __init__(self, members: list[int], tensors: list[Array]) -> None:
        self.members = members
        self.tensors = tensors
        self.memory: list[list[Array]] = [[], []]
        self.turn = 0

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return int(self.tensors[0].shape[2])

    def space(self, like: Sequence[Array], length: int) -> list[Array]:
        """Arrays for `length` tokens, in the memory that `tensors` are not in."""
        self.turn ^= 1
        flat = self.memory[self.turn]
        shapes = [(t.shape[0], t.shape[1], length, t.shape[3]) for t in like]
        if not flat or any(f.size < prod(s) for f, s in zip(flat, shapes, strict=True)):
            room = [(s[0], s[1], length + _SPARE, s[3]) for s in shapes]
            flat = [np.empty(prod(r), t.dtype) for r, t in zip(room, like, strict=True)]
            self.memory[self.turn] = flat
        return [f[: prod(s)].reshape(s) for f, s in zip(flat, shapes, strict=True)]


class ConcatenatedCache:
    """The past of up to `sequences` sequences; `held` are their lengths. Checks nothing."""

    def __init__(self, steps: Steps, sequences: int) -> None:
        self.held = np.zeros(sequences, np.int64)
        self._steps = steps
        self._places: dict[int, tuple[_Group, int]] = {}

    def extend(self, sequence: int, tokens: Array, keep: int) -> Array:
        """Compute the next tokens of one sequence; logits (kept, vocabulary)."""
        group = self._alone(sequence)
        past = int(self.held[sequence])
        end = past + len(tokens)
        logits = self._run(
            "extend",
            group,
            tokens[None],
            np.ones((1, end), np.int64),
            np.arange(past, end, dtype=np.int64)[None],
            keep,
        )
        self.held[sequence] = end
        found: Array = logits[0]
        return found

    def decode(self, sequences: Sequence[int], tokens: Array) -> Array:
        """Compute one token of each sequence, all different; logits (n, vocabulary)."""
        group = self._together(sequences)
        past = self.held[np.asarray(group.members)]
        length = group.length
        by_sequence = dict(zip(sequences, tokens.tolist(), strict=True))
        logits = self._run(
            "decode",
            group,
            np.array([[by_sequence[member]] for member in group.members], np.int64),
            (np.arange(length + 1) >= (length - past)[:, None]).astype(np.int64),
            past[:, None],
            1,
        )
        self.held[np.asarray(group.members)] += 1
        rows = [group.members.index(sequence) for sequence in sequences]
        return logits[rows, -1]

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first tokens of `source` the content of the empty `target`."""
        tensors = [part[None, :, :length].copy() for part in self._content(source)]
        self._place(_Group([target], tensors))
        self.held[target] = length

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all from `length` on."""
        if length >= self.held[sequence]:
            return
        if length == 0:
            self.free(sequence)
            return
        tensors = [part[None, :, :length].copy() for part in self._content(sequence)]
        self._leave(sequence)
        self._place(_Group([sequence], tensors))
        self.held[sequence] = length

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        self._leave(sequence)
        self.held[sequence] = 0

    def _run(
        self, purpose: str, group: _Group, ids: Array, mask: Array, positions: Array, keep: int
    ) -> Array:
        fresh = group.space(group.tensors, group.length + ids.shape[1])
        # The arrays are others in each step, so they are always bound.
        bind = partial(self._bind, past=group.tensors, present=fresh)
        try:
            logits = self._steps.run(purpose, ids, mask, positions, keep, object(), bind)
        except BaseException:
            group.turn ^= 1  # What was there before the step is still whole.
            raise
        group.tensors = fresh
        return logits

    def _bind(self, io: Any, past: list[Array], present: list[Array]) -> None:
        for cached, before, after in zip(self._steps.signature.cache, past, present, strict=True):
            number = TYPES[cached.kind][1]
            io.bind_input(cached.past, "cpu", 0, number, list(before.shape), before.ctypes.data)
            io.bind_output(cached.present, "cpu", 0, number, list(after.shape), after.ctypes.data)

    def _content(self, sequence: int) -> list[Array]:
        """What a sequence holds: views (heads, held, head size)."""
        if sequence not in self._places:
            return self._empty()
        group, row = self._places[sequence]
        start = group.length - int(self.held[sequence])
        return [tensor[row, :, start:] for tensor in group.tensors]

    def _empty(self) -> list[Array]:
        return [
            np.zeros((cached.heads, 0, cached.size), TYPES[cached.kind][0])
            for cached in self._steps.signature.cache
        ]

    def _alone(self, sequence: int) -> _Group:
        """The sequence's own group, without company and without filling."""
        if sequence in self._places:
            group = self._places[sequence][0]
            if len(group.members) == 1:
                return group
        tensors = [part[None].copy() for part in self._content(sequence)]
        self._leave(sequence)
        group = _Group([sequence], tensors)
        self._place(group)
        return group

    def _together(self, sequences: Sequence[int]) -> _Group:
        """The group of exactly these sequences, in any order."""
        first = self._places.get(sequences[0])
        if first is not None and sorted(first[0].members) == sorted(sequences):
            return first[0]
        if len(sequences) == 1:
            return self._alone(sequences[0])
        length = int(self.held[np.asarray(sequences)].max())
        group = _Group(list(sequences), [])
        like = [part[None].repeat(len(sequences), 0) for part in self._empty()]
        group.tensors = group.space(like, length)
        parts = [self._content(sequence) for sequence in sequences]
        for i, tensor in enumerate(group.tensors):
            for row, (sequence, content) in enumerate(zip(sequences, parts, strict=True)):
                start = length - int(self.held[sequence])
                tensor[row, :, :start] = 0
                tensor[row, :, start:] = content[i]
        left = {id(p[0]): p[0] for s in sequences if (p := self._places.get(s)) is not None}
        for sequence in sequences:
            self._leave(sequence)
        self._place(group)
        # Those who stay behind must not keep the memory of the whole old group.
        for old in left.values():
            for member in [m for m in old.members if m >= 0]:
                self._alone(member)
        return group

    def _leave(self, sequence: int) -> None:
        if sequence in self._places:
            group, row = self._places.pop(sequence)
            group.members[row] = -1

    def _place(self, group: _Group) -> None:
        for row, sequence in enumerate(group.members):
            self._places[sequence] = (group, row)
