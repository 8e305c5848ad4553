"""The engine's batches as llama.cpp takes them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from themis_engine import Batch
from themis_llamacpp.native import lib


class NativeBatch:
    """A `llama_batch` over numpy arrays: filled without a loop, nothing to free."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._sequences = np.zeros(size, dtype=np.int32)
        self._counts = np.ones(size, dtype=np.int32)
        self._wanted = np.zeros(size, dtype=np.int8)
        # One pointer per token, each to that token's entry of `_sequences`; never changed.
        start, step = self._sequences.ctypes.data, self._sequences.itemsize
        self._pointers = np.arange(start, start + size * step, step, dtype=np.uintp)
        self.struct = lib.llama_batch()
        kinds: dict[str, Any] = dict(lib.llama_batch._fields_)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": self._counts,
            "seq_id": self._pointers,
            "logits": self._wanted,
        }
        for name, array in arrays.items():
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kinds[name]))

    def fill(self, batch: Batch) -> int:
        """Take over a batch. Returns how many rows of logits llama.cpp will give for it."""
        count = len(batch.tokens)
        self.struct.n_tokens = count
        self._tokens[:count] = batch.tokens
        self._positions[:count] = batch.positions
        self._sequences[:count] = batch.sequences
        self._wanted[:count] = 0
        self._wanted[batch.logit_rows] = 1
        return int(np.count_nonzero(self._wanted[:count]))

    def want_all(self) -> None:
        """Ask for a row of each position."""
        self._wanted[: self.struct.n_tokens] = 1
