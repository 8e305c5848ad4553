"""llama.cpp as a `ModelRunner`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from themis_core.errors import BackendFailed
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
    """One model and one context. Raises, when made, `ModelFileInvalid` or `ModelLoadFailed`."""

    def __init__(self, settings: LlamaCppSettings) -> None:
        self._model = load_model(settings)
        self._context: Any = None
        self.tokenizer = LlamaTokenizer(self._model)
        try:
            self._context = make_context(self._model, settings)
            self._memory = lib.llama_get_memory(self._context)
            self._split = not settings.kv_unified
            self._batch = _NativeBatch(settings.batch_size)
            self.info = self._describe(settings)
        except BaseException:  # Whatever happened, the native memory must go.
            self.close()
            raise

    def forward(self, batch: Batch) -> Logits:
        """Compute a batch. The logits are llama.cpp's own buffer, valid until the next call."""
        self._batch.fill(batch)
        # ctypes releases the interpreter lock during the call.
        code = lib.llama_decode(self._context, self._batch.struct)
        if code != 0:
            self._undo(batch)
            what = _DECODE_ERRORS.get(code, f"llama_decode returned {code}")
            raise BackendFailed(
                f"llama.cpp could not compute a step: {what} ({log.reason()}).", plugin="llamacpp"
            )
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
        """Share the cells of a prefix; with a split cache, copy them."""
        if self._split:
            # Between two streams, llama.cpp copies whole sequences only.
            lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            lib.llama_memory_seq_rm(self._memory, target, length, -1)
        else:
            lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget all from `length` on; recurrent models cannot."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

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
            start = int(batch.positions[batch.sequences == sequence].min())
            lib.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def _describe(self, settings: LlamaCppSettings) -> RunnerInfo:
        context = settings.context or lib.llama_model_n_ctx_train(self._model)
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, buffer, 256)
        return RunnerInfo(
            vocab_size=self.tokenizer.vocab_size,
            context_length=min(context, lib.llama_n_ctx_seq(self._context)),
            max_sequences=settings.parallel,
            kv_capacity=lib.llama_n_ctx(self._context),
            max_batch=settings.batch_size,
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

    def fill(self, batch: Batch) -> None:
        """Take over a batch."""
        count = len(batch.tokens)
        self.struct.n_tokens = count
        self._tokens[:count] = batch.tokens
        self._positions[:count] = batch.positions
        self._sequences[:count] = batch.sequences
        self._wanted[:count] = 0
        self._wanted[batch.logit_rows] = 1
