"""Vectors of texts: hidden states of all their tokens, pooled, and normalised to length 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from themis_core.errors import RequestTooLarge
from themis_engine.kv import KvManager
from themis_engine.runner import Batch, EmbeddingRunner, Pooling, RunnerInfo

Vector = npt.NDArray[np.float32]


class EmbeddingJob:
    """Some texts (as token ids) on their way to vectors, batch by batch, the shortest first."""

    def __init__(self, texts: Sequence[Sequence[int]], pooling: Pooling, info: RunnerInfo) -> None:
        """Raises `RequestTooLarge` for a text that cannot be computed."""
        self._texts = [list(text) for text in texts]
        self._pooling = pooling
        self._info = info
        self._open = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        self._vectors: dict[int, Vector] = {}
        most = min(info.context_length, info.kv_capacity) if info.causal else info.max_batch
        for i, text in enumerate(self._texts):
            if len(text) > most:
                raise RequestTooLarge(
                    f"Input {i} has {len(text)} tokens, but at most {most} can be embedded.",
                    field="inputs",
                )

    @property
    def vectors(self) -> list[Vector]:
        """One for each text, once `done`."""
        return [self._vectors[i] for i in range(len(self._texts))]

    @property
    def done(self) -> bool:
        """True if all texts are computed."""
        return len(self._vectors) == len(self._texts)

    def borrow(self, kv: KvManager) -> dict[int, int]:
        """Texts of the next batch with a sequence id each, as the KV cache has room.

        What this asks of the model must be done before `compute`; then `give_back`.
        """
        chosen: dict[int, int] = {}
        size = 0
        while self._open:
            length = len(self._texts[self._open[-1]])
            if chosen and size + length > self._info.max_batch:
                break
            slot = kv.borrow(length)
            if slot is None:
                break
            chosen[self._open.pop()] = slot
            size += length
        return chosen

    def give_back(self, kv: KvManager, chosen: dict[int, int]) -> None:
        """The sequence ids are free again."""
        for slot in chosen.values():
            kv.give_back(slot)

    def compute(self, runner: EmbeddingRunner, chosen: dict[int, int]) -> None:
        """Compute the texts of a batch."""
        rows = [(i, position) for i in chosen for position in range(len(self._texts[i]))]
        states: dict[int, list[Vector]] = {i: [] for i in chosen}
        for start in range(0, len(rows), self._info.max_batch):
            part = rows[start : start + self._info.max_batch]
            hidden = runner.hidden_states(
                Batch(
                    tokens=np.array([self._texts[i][p] for i, p in part], dtype=np.int32),
                    positions=np.array([p for _, p in part], dtype=np.int32),
                    sequences=np.array([chosen[i] for i, _ in part], dtype=np.int32),
                    logit_rows=np.array([], dtype=np.int32),
                )
            )
            for (i, _), state in zip(part, hidden, strict=True):
                states[i].append(state.copy())
        for i, found in states.items():
            self._vectors[i] = normalised(pooled(np.array(found), self._pooling))


def pooled(states: npt.NDArray[np.float32], pooling: Pooling) -> Vector:
    """One vector (size,) of hidden states (tokens, size)."""
    if pooling == "cls":
        vector: Vector = states[0]
    elif pooling == "last":
        vector = states[-1]
    else:
        vector = states.mean(axis=0)
    return vector


def normalised(vector: Vector) -> Vector:
    """The same direction, of length 1; a vector of zeros stays."""
    length = float(np.linalg.norm(vector))
    scaled: Vector = vector / np.float32(length or 1.0)
    return scaled
