"""`ReferenceRunner`: the numpy Llama behind the engine's `ModelRunner` contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from themis_core.errors import BackendFailed
from themis_engine import Batch, Logits, RunnerInfo
from themis_engine.hf_tokenizer import HfTokenizer
from themis_testkit.reference.llama import KVCache, NumpyLlama

_MAX_BATCH = 512


class ReferenceRunner:
    """Each sequence is computed by itself, so company never changes its logits.

    Strict: what the contract of `ModelRunner` forbids raises `BackendFailed` and changes nothing.
    """

    def __init__(self, directory: Path, *, parallel: int = 8, kv_tokens: int = 0) -> None:
        """Raises `ModelFileInvalid`. `kv_tokens` 0: enough for `parallel` full contexts."""
        self._tokenizer = HfTokenizer(directory)
        self._llama = NumpyLlama(directory)
        context = self._llama.config.max_position_embeddings
        self._info = RunnerInfo(
            vocab_size=self._llama.config.vocab_size,
            context_length=context,
            max_sequences=parallel,
            kv_capacity=kv_tokens or parallel * context,
            max_batch=max(_MAX_BATCH, parallel),
            parameters=self._llama.parameters,
            size_bytes=(directory / "model.safetensors").stat().st_size,
            description=f"numpy reference of {directory.name}",
        )
        self._empty = self._llama.empty_cache()
        self._caches: dict[int, KVCache] = {}

    @property
    def info(self) -> RunnerInfo:
        """Limits and facts."""
        return self._info

    @property
    def tokenizer(self) -> HfTokenizer:
        """The tokenizer of the same directory."""
        return self._tokenizer

    def forward(self, batch: Batch) -> Logits:
        """Logits (len(logit_rows), vocab_size). On an error no cache has changed."""
        self._check(batch)
        hidden = np.empty((len(batch.tokens), self._llama.config.hidden_size), np.float32)
        extended = {}
        for sequence in np.unique(batch.sequences).tolist():
            rows = np.flatnonzero(batch.sequences == sequence)
            past = self._cache(sequence)
            if not np.array_equal(batch.positions[rows], len(past) + np.arange(len(rows))):
                raise BackendFailed(f"The positions do not continue sequence {sequence}.")
            tokens = batch.tokens[rows].tolist()
            hidden[rows], extended[sequence] = self._llama.forward(tokens, past)
        self._caches |= extended
        return self._llama.logits(hidden[batch.logit_rows])

    def copy(self, source: int, target: int, length: int) -> None:
        """Begin `target` with the first `length` tokens of `source`."""
        held = self._cache(source)
        if len(self._cache(target)) or length > len(held):
            raise BackendFailed(f"Cannot copy {length} tokens of {source} to {target}.")
        self._check_capacity(length)
        self._caches[target] = held.first(length)

    def truncate(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens. Always possible."""
        self._caches[sequence] = self._cache(sequence).first(length)
        return True

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        self._caches.pop(sequence, None)

    def close(self) -> None:
        """Forget everything."""
        self._caches.clear()

    def _cache(self, sequence: int) -> KVCache:
        return self._caches.get(sequence, self._empty)

    def _check(self, batch: Batch) -> None:
        info = self._info
        if not 0 < len(batch.tokens) <= info.max_batch:
            raise BackendFailed(f"A batch has {len(batch.tokens)} of {info.max_batch} positions.")
        for name, limit in (
            ("tokens", info.vocab_size),
            ("positions", info.context_length),
            ("sequences", info.max_sequences),
        ):
            values = getattr(batch, name)
            if values.min() < 0 or values.max() >= limit:
                raise BackendFailed(f"A batch has {name} outside 0 to {limit - 1}.")
        self._check_capacity(len(batch.tokens))

    def _check_capacity(self, more: int) -> None:
        held = sum(len(cache) for cache in self._caches.values())
        if held + more > self._info.kv_capacity:
            raise BackendFailed(
                f"The KV cache of {self._info.kv_capacity} tokens holds {held} and cannot take "
                f"{more} more."
            )
