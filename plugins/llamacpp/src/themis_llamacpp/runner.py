"""llama.cpp as a `ModelRunner`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from themis_core.errors import BackendFailed, InternalError
from themis_engine import Batch, Logits, RunnerInfo
from themis_llamacpp import log
from themis_llamacpp.loading import load_model, make_context
from themis_llamacpp.native import lib
from themis_llamacpp.settings import LlamaCppSettings
from themis_llamacpp.tokenizer import LlamaTokenizer

_DECODE_ERRORS = {
    1: "there is no room in the KV cache",
    2: "the computation was aborted",
    -1: "the batch is invalid",
}


class LlamaRunner:
    """One model and one context. Raises, when made, `ModelFileInvalid` or `ModelLoadFailed`.

    Calls that break the contract raise `InternalError`: for many of them llama.cpp would end the
    process, and for others it would compute nonsense.
    """

    def __init__(self, settings: LlamaCppSettings) -> None:
        self._model = load_model(settings)
        self._context: Any = None
        self.tokenizer = LlamaTokenizer(self._model)
        try:
            self._context = make_context(self._model, settings)
            self._memory = lib.llama_get_memory(self._context)
            self._split = not settings.kv_unified
            self._held = np.zeros(settings.parallel, dtype=np.int64)  # Tokens of each sequence.
            self.info = self._describe(settings)
            self._batch = _NativeBatch(self.info.max_batch)
        except BaseException:  # Whatever happened, the native memory must go.
            self.close()
            raise

    def forward(self, batch: Batch) -> Logits:
        """Compute a batch. The logits are llama.cpp's own buffer, valid until the next call."""
        held = self._after(batch)
        if self._batch.fill(batch) != len(batch.logit_rows):
            raise _misused("logit_rows must be different indices, in rising order")
        log.clear()  # What was logged earlier is not the reason of a failure now.
        # ctypes releases the interpreter lock during the call.
        code = lib.llama_decode(self._context, self._batch.struct)
        if code != 0:
            self._undo(batch)
            what = _DECODE_ERRORS.get(code, f"llama_decode returned {code}")
            raise BackendFailed(
                f"llama.cpp could not compute a step: {what} ({log.reason()}).", plugin="llamacpp"
            )
        self._held = held
        rows = len(batch.logit_rows)
        if rows == 0:
            return np.empty((0, self.tokenizer.vocab_size), dtype=np.float32)
        pointer = lib.llama_get_logits(self._context)
        flat = (ctypes.c_float * (rows * self.tokenizer.vocab_size)).from_address(
            ctypes.addressof(pointer.contents)
        )
        logits: Logits = np.frombuffer(memoryview(flat), dtype=np.float32)
        return logits.reshape(rows, -1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Share the cells of a prefix; with a split cache, the next step copies them.

        Raises `BackendFailed` if the model can share only whole sequences (recurrent models).
        """
        self._check(source)
        self._check(target)
        whole = int(self._held[source])
        if source == target or self._held[target] or not 0 <= length <= whole:
            raise _misused(f"cannot copy {length} of {whole} tokens from {source} to {target}")
        if length == 0:
            return
        if self._split:
            # Between two streams, llama.cpp copies whole sequences only, or ends the process.
            lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        else:
            lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
        # A recurrent state is copied whole whatever was asked for, and cannot be cut.
        if length < whole and not self._remove(target, length):
            self._remove(target, -1)
            raise BackendFailed("This model cannot share a part of a sequence.", plugin="llamacpp")
        self._held[target] = length

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget all from `length` on; recurrent models cannot."""
        self._check(sequence)
        if length < 0:
            raise _misused(f"cannot truncate to {length} tokens")
        if length < self._held[sequence]:
            if not self._remove(sequence, length):
                return False
            self._held[sequence] = length
        return True

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        self._check(sequence)
        self._remove(sequence, -1)
        self._held[sequence] = 0

    def close(self) -> None:
        """Free context and model. Calling it again does nothing."""
        self.tokenizer.close()
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context:
            lib.llama_free(context)
        if model:
            lib.llama_model_free(model)

    def _undo(self, batch: Batch) -> None:
        """After a failed step, remove what of it is in the KV cache."""
        for sequence in np.unique(batch.sequences).tolist():
            if not self._remove(sequence, int(self._held[sequence])):
                self.free(sequence)  # A recurrent state cannot go back; empty is consistent.

    def _remove(self, sequence: int, start: int) -> bool:
        """Remove positions from `start` on; -1: all, which never fails."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def _check(self, sequence: int) -> None:
        if not 0 <= sequence < len(self._held):
            raise _misused(f"there is no sequence {sequence}")

    def _after(self, batch: Batch) -> np.ndarray[Any, np.dtype[np.int64]]:
        """What each sequence will hold after the batch. Raises `InternalError` if it is wrong."""
        count, rows = len(batch.tokens), batch.logit_rows
        if not 0 < count <= self.info.max_batch:
            raise _misused(f"a batch of {count} positions; possible are 1 to {self.info.max_batch}")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < count:
            raise _misused("logit_rows must be different indices, in rising order")
        if not 0 <= batch.sequences.min() <= batch.sequences.max() < len(self._held):
            raise _misused("the batch has a sequence that does not exist")
        # Without gaps, as many are added to a sequence as its last position says.
        after = self._held + np.bincount(batch.sequences, minlength=len(self._held))
        ends = self._held.copy()
        ends[batch.sequences] = batch.positions + 1
        if not np.array_equal(after, ends):
            raise _misused("the positions do not continue what the sequences hold")
        return after

    def _describe(self, settings: LlamaCppSettings) -> RunnerInfo:
        context = settings.context or lib.llama_model_n_ctx_train(self._model)
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, buffer, 256)
        return RunnerInfo(
            vocab_size=self.tokenizer.vocab_size,
            context_length=min(context, lib.llama_n_ctx_seq(self._context)),
            max_sequences=settings.parallel,
            kv_capacity=lib.llama_n_ctx(self._context),
            # llama.cpp lowers it to the context's size, and ends the process at a larger batch.
            max_batch=lib.llama_n_batch(self._context),
            shares_kv=settings.kv_unified,
            batch_invariant=False,  # Its kernels differ with the shape of the batch.
            parameters=lib.llama_model_n_params(self._model),
            size_bytes=lib.llama_model_size(self._model),
            description=buffer.value.decode("utf-8", "replace"),
        )


class _NativeBatch:
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


def _misused(what: str) -> InternalError:
    return InternalError(f"The runner was called wrongly: {what}.", plugin="llamacpp")
