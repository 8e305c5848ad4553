"""llama.cpp as a `ModelRunner`, with adapters, hidden states and saved states."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from themis_core.errors import BackendFailed, InternalError
from themis_engine import Batch, Logits, RunnerInfo
from themis_llamacpp import log
from themis_llamacpp.adapters import Adapters
from themis_llamacpp.facts import facts_of
from themis_llamacpp.fingerprint import fingerprint
from themis_llamacpp.gguf_header import Header
from themis_llamacpp.loading import (
    context_length,
    has_keepers,
    load_model,
    make_context,
    sequences,
)
from themis_llamacpp.native import lib
from themis_llamacpp.native_batch import NativeBatch
from themis_llamacpp.settings import LlamaCppSettings
from themis_llamacpp.state import put_in, read_out
from themis_llamacpp.tokenizer import LlamaTokenizer

_ERRORS = {
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
        path = Path(settings.path).expanduser()
        with ExitStack() as resources:  # Whatever happens, the native memory must go.
            self._model, header = load_model(path, settings)
            resources.callback(lib.llama_model_free, self._model)
            self.tokenizer = LlamaTokenizer(self._model)
            resources.callback(self.tokenizer.close)
            self._facts = facts_of(self._model, header)
            self._adapters = Adapters(self._model, header)
            resources.callback(self._adapters.close)
            self._context = make_context(self._model, self._facts, settings)
            resources.callback(lib.llama_free, self._context)  # First of all to be freed.
            self._memory = lib.llama_get_memory(self._context)
            self._split = not settings.kv_unified and self._facts.causal
            self._copying = False  # With a split cache: the next step begins with copying.
            self.info = self._describe(settings, path, header)
            self._held = np.zeros(self.info.max_sequences, np.int64)  # Tokens of each sequence.
            # From a sequence's id to its keeper's, see `has_keepers`; 0 without.
            keepers = has_keepers(self._facts, settings)
            self._keeper = self.info.max_sequences if keepers else 0
            self._batch = NativeBatch(self.info.max_batch)
            self._resources = resources.pop_all()

    def forward(self, batch: Batch) -> Logits:
        """Compute a batch. The logits are llama.cpp's own buffer, valid until the next call."""
        if not self._facts.causal:
            raise _misused("an encoder gives no logits")
        held = self._after(batch)
        if self._batch.fill(batch) != len(batch.logit_rows):
            raise _misused("logit_rows must be different indices, in rising order")
        self._compute(batch)
        self._held = held
        rows = len(batch.logit_rows)
        if rows == 0:
            return np.empty((0, self.tokenizer.vocab_size), dtype=np.float32)
        return _view(lib.llama_get_logits(self._context), rows, self.tokenizer.vocab_size)

    def hidden_states(self, batch: Batch) -> Logits:
        """Compute a batch for its hidden states.

        llama.cpp computes the logits of all these positions too, and keeps room for them. Of a
        model that is not causal, nothing stays in the sequences.
        """
        if not self.info.embedding_size or len(batch.logit_rows):
            raise _misused("this model gives no hidden states, or logits are wanted beside them")
        held = self._after(batch)
        self._batch.fill(batch)
        self._batch.want_all()
        lib.llama_set_embeddings(self._context, True)
        try:
            self._compute(batch)
            pointer = lib.llama_get_embeddings(self._context)
            # A copy: the next call may move llama.cpp's buffer.
            states = _view(pointer, len(batch.tokens), self.info.embedding_size).copy()
        finally:
            lib.llama_set_embeddings(self._context, False)
        if self._facts.causal:
            self._held = held
        elif self._memory:
            self._undo(batch)
        return states

    def copy(self, source: int, target: int, length: int) -> None:
        """Share the cells of a prefix; with a split cache, the next step copies them.

        Raises `BackendFailed`, and changes nothing, if the model can share only whole sequences
        (recurrent ones).
        """
        self._check(source)
        self._check(target)
        whole = int(self._held[source])
        if source == target or self._held[target] or not 0 <= length <= whole:
            raise _misused(f"cannot copy {length} of {whole} tokens from {source} to {target}")
        if length == 0:
            return
        if length < whole and not self._divisible(source, length):
            raise BackendFailed(
                f"Of a sequence of {whole} tokens, this model cannot share the first {length}.",
                plugin="llamacpp",
            )
        if self._split:
            # Between two streams, llama.cpp copies whole sequences only, or ends the process.
            lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._copying = True
            if length < whole:
                self._remove(target, length)
        else:
            # Of recurrent models, the state is shared, whatever the length; so it must be whole.
            lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
            self._hold(target, 0)
        self._held[target] = length

    def truncate(self, sequence: int, length: int) -> bool:
        """Forget all from `length` on.

        Recurrent models cannot.
        """
        self._check(sequence)
        if length < 0:
            raise _misused(f"cannot truncate to {length} tokens")
        if length < self._held[sequence]:
            if length and not self._divisible(sequence, length):
                return False
            if not self._remove(sequence, length if length else -1):
                return False
            self._held[sequence] = length
        return True

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        self._check(sequence)
        self._remove(sequence, -1)
        self._held[sequence] = 0

    def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter in GGUF form."""
        self._adapters.load(name, Path(path).expanduser())

    def unload_adapter(self, name: str) -> None:
        """Free an adapter. Sequences that were computed with it must be freed before."""
        self._adapters.unload(self._context, name)

    def save(self, sequence: int) -> bytes:
        """The state of a sequence, with a hash. Raises `BackendFailed` if llama.cpp cannot.

        Of a sliding-window model llama.cpp saves only what the window still reaches, and the rest
        would be missing where the sequence is cut later. So beyond the window the state is empty,
        and `restore` refuses it.
        """
        self._check(sequence)
        length = int(self._held[sequence])
        if not length:
            raise _misused(f"sequence {sequence} is empty and has no state")
        if 0 < self._facts.window < length:
            return b""
        self._finish_copies()
        return read_out(self._context, sequence, length)

    def restore(self, sequence: int, state: bytes, length: int) -> None:
        """Put a saved state into an empty sequence.

        Truncated and damaged states raise `BackendFailed` before llama.cpp sees them, and the
        sequence stays empty. A forged one can end the process: see `themis_llamacpp.state`.
        """
        self._check(sequence)
        if self._held[sequence] or not 0 < length <= self.info.context_length:
            raise _misused(f"cannot restore {length} tokens into sequence {sequence}")
        self._finish_copies()
        try:
            put_in(self._context, sequence, state, length)
            if lib.llama_memory_seq_pos_max(self._memory, sequence) != length - 1:
                raise BackendFailed("A saved state has other positions.", plugin="llamacpp")
        except BackendFailed:
            self._remove(sequence, -1)
            raise
        self._hold(sequence, 0)
        self._held[sequence] = length

    def close(self) -> None:
        """Free context, adapters and model. Calling it again does nothing."""
        self._resources.close()

    def _compute(self, batch: Batch) -> None:
        """Have llama.cpp compute what `_batch` was filled with; on an error, undo it."""
        self._adapters.use(self._context, batch.adapters)
        log.clear()  # What was logged earlier is not the reason of a failure now.
        # ctypes releases the interpreter lock during the call. Without a KV cache, llama_decode
        # would encode as well, but may not always do so.
        compute = lib.llama_decode if self._memory else lib.llama_encode
        code = compute(self._context, self._batch.struct)
        self._copying = False
        if code != 0:
            self._undo(batch)
            what = _ERRORS.get(code, f"the code is {code}")
            raise BackendFailed(
                f"llama.cpp could not compute a step: {what} ({log.reason()}).", plugin="llamacpp"
            )
        if self._keeper:
            for sequence in np.unique(batch.sequences).tolist():
                self._hold(sequence, int(self._held[sequence]))

    def _finish_copies(self) -> None:
        """With a split cache `copy` only queues its work, and saved states would miss it.

        llama.cpp does what is queued at the beginning of a step, and offers no other way: so
        compute one token, and take it back. It is done even if there is no room for the token.
        """
        if not self._copying:
            return
        sequence = int(self._held.argmin())
        length = int(self._held[sequence])
        if length and self._facts.recurrent:
            raise BackendFailed("There is no empty sequence to work with.", plugin="llamacpp")
        one = np.zeros(1, np.int32)
        self._batch.fill(Batch(one, one + length, one + sequence, one[:0]))
        lib.llama_decode(self._context, self._batch.struct)
        self._remove(sequence, length if length else -1)
        self._copying = False

    def _undo(self, batch: Batch) -> None:
        """Remove what of a batch is in the KV cache beyond what the sequences held before."""
        if not self._memory:
            return
        for sequence in np.unique(batch.sequences).tolist():
            held = int(self._held[sequence])
            if not self._remove(sequence, held if held else -1):
                self.free(sequence)  # A recurrent state cannot go back; empty is consistent.

    def _hold(self, sequence: int, start: int) -> None:
        """Let a sequence's keeper hold its cells from `start` on."""
        if self._keeper:
            keeper = sequence + self._keeper
            lib.llama_memory_seq_cp(self._memory, sequence, keeper, start, -1)

    def _remove(self, sequence: int, start: int) -> bool:
        """Remove positions from `start` on; -1: all, which never fails."""
        if not self._memory:
            return True
        if self._keeper:
            lib.llama_memory_seq_rm(self._memory, sequence + self._keeper, start, -1)
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def _divisible(self, sequence: int, length: int) -> bool:
        """True if the first `length` tokens are there as if nothing had followed them."""
        facts = self._facts
        if facts.recurrent:
            return False
        if not facts.window:
            return True
        # The keepers see to it, but a wrong answer would be a silent one. The next token sees
        # `window` positions, its own included.
        first = lib.llama_memory_seq_pos_min(self._memory, sequence)
        return bool(first <= max(0, length - facts.window + 1))

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
        # Encoders look positions up in a table, and llama.cpp would end the process.
        if not self._memory and after.max() > self.info.context_length:
            raise _misused(f"a sequence of {after.max()} tokens is longer than the context")
        return after

    def _describe(self, settings: LlamaCppSettings, path: Path, header: Header) -> RunnerInfo:
        facts = self._facts
        context = context_length(facts, settings)
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._model, buffer, 256)
        count = sequences(facts, settings)
        return RunnerInfo(
            vocab_size=self.tokenizer.vocab_size,
            context_length=min(context, lib.llama_n_ctx_seq(self._context)),
            max_sequences=count,
            kv_capacity=lib.llama_n_ctx(self._context),
            # llama.cpp lowers it to the context's size, and ends the process at a larger batch.
            max_batch=lib.llama_n_batch(self._context),
            shares_kv=settings.kv_unified and facts.causal,
            truncates=facts.causal and not facts.recurrent,
            batch_invariant=False,  # Its kernels differ with the shape of the batch.
            embedding_size=facts.embedding_size,
            pooling=facts.pooling,
            causal=facts.causal,
            parameters=lib.llama_model_n_params(self._model),
            size_bytes=lib.llama_model_size(self._model),
            description=buffer.value.decode("utf-8", "replace"),
            fingerprint=fingerprint(path, header, settings, count),
        )


def _view(pointer: Any, rows: int, width: int) -> Logits:
    """A matrix that llama.cpp has written, without a copy."""
    flat = (ctypes.c_float * (rows * width)).from_address(ctypes.addressof(pointer.contents))
    matrix: Logits = np.frombuffer(memoryview(flat), dtype=np.float32)
    return matrix.reshape(rows, -1)


def _misused(what: str) -> InternalError:
    return InternalError(f"The runner was called wrongly: {what}.", plugin="llamacpp")
