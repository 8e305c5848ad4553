"""`ReferenceRunner`: the numpy Llama behind the engine's `ModelRunner` contract."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from themis_core.errors import BackendFailed
from themis_core.messages import AdapterWeight
from themis_engine import Batch, Logits, RunnerInfo
from themis_engine.hf_tokenizer import HfTokenizer
from themis_testkit.reference.llama import KVCache, NumpyLlama
from themis_testkit.reference.lora import Lora
from themis_testkit.reference.state import pack, unpack

_MAX_BATCH = 512
_MOST_MERGED = 8

AdapterSet = tuple[AdapterWeight, ...]


@dataclass(frozen=True, slots=True)
class _Held:
    """What a sequence holds, and the adapters that it was computed with."""

    cache: KVCache
    adapters: AdapterSet = ()


class ReferenceRunner:
    """Each sequence is computed by itself, so company never changes its logits.

    Strict: what the contract of `ModelRunner` forbids raises `BackendFailed` and changes nothing.
    """

    def __init__(
        self,
        directory: Path,
        *,
        parallel: int = 8,
        kv_tokens: int = 0,
        prefix_sequences: int = 0,
    ) -> None:
        """Raises `ModelFileInvalid`. `kv_tokens` 0: enough for `parallel` full contexts.

        `prefix_sequences` are ids beyond those that run at once.
        """
        self._tokenizer = HfTokenizer(directory)
        self._llama = NumpyLlama(directory)
        config = self._llama.config
        self._info = RunnerInfo(
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            max_sequences=parallel + prefix_sequences,
            kv_capacity=kv_tokens or parallel * config.max_position_embeddings,
            max_batch=max(_MAX_BATCH, parallel + prefix_sequences),
            embedding_size=config.hidden_size,
            parameters=self._llama.parameters,
            size_bytes=(directory / "model.safetensors").stat().st_size,
            description=f"numpy reference of {directory.name}",
            fingerprint=_fingerprint(directory),
        )
        self._empty = _Held(self._llama.empty_cache())
        self._sequences: dict[int, _Held] = {}
        self._adapters: dict[str, Lora] = {}
        self._merged: dict[AdapterSet, NumpyLlama] = {(): self._llama}

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
        return self._model(batch.adapters).logits(self._compute(batch)[batch.logit_rows])

    def hidden_states(self, batch: Batch) -> Logits:
        """States after the last norm, (len(tokens), hidden_size)."""
        if len(batch.logit_rows):
            raise BackendFailed("Logits are wanted beside hidden states.")
        return self._model(batch.adapters).final(self._compute(batch))

    def copy(self, source: int, target: int, length: int) -> None:
        """Begin `target` with the first `length` tokens of `source`."""
        held = self._held(source)
        if len(self._held(target).cache) or not 0 <= length <= len(held.cache):
            raise BackendFailed(f"Cannot copy {length} tokens of {source} to {target}.")
        self._check_capacity(length)
        self._keep(target, _Held(held.cache.first(length), held.adapters))

    def truncate(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens. Always possible."""
        held = self._held(sequence)
        self._keep(sequence, _Held(held.cache.first(length), held.adapters))
        return True

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        self._sequences.pop(sequence, None)

    def load_adapter(self, name: str, path: str) -> None:
        """Read a PEFT directory. Raises `ModelFileInvalid` for what is not a plain LoRA."""
        if name in self._adapters:
            raise BackendFailed(f"An adapter {name!r} is loaded already.")
        self._adapters[name] = self._llama.adapter(Path(path).expanduser())

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. No sequence may hold anything that was computed with it."""
        if name not in self._adapters:
            raise BackendFailed(f"There is no adapter {name!r}.")
        for sequence, held in self._sequences.items():
            if _uses(held.adapters, name):
                raise BackendFailed(f"Sequence {sequence} was computed with adapter {name!r}.")
        del self._adapters[name]
        self._merged = {s: m for s, m in self._merged.items() if not _uses(s, name)}

    def save(self, sequence: int) -> bytes:
        """Keys, values and adapters of a sequence that holds something."""
        held = self._held(sequence)
        if not len(held.cache):
            raise BackendFailed(f"Sequence {sequence} is empty and has no state.")
        return pack(held.cache, held.adapters)

    def restore(self, sequence: int, state: bytes, length: int) -> None:
        """Give a saved state to an empty sequence. Raises `BackendFailed` if it is damaged."""
        if len(self._held(sequence).cache):
            raise BackendFailed(f"Sequence {sequence} is not empty.")
        cache, adapters = unpack(state, self._empty.cache)
        if len(cache) != length:
            raise BackendFailed(f"A saved state is of {len(cache)} tokens, not {length}.")
        self._model(adapters)  # They must be loaded.
        self._check_capacity(length)
        self._keep(sequence, _Held(cache, adapters))

    def close(self) -> None:
        """Forget everything."""
        self._sequences.clear()
        self._adapters.clear()
        self._merged.clear()

    def _compute(self, batch: Batch) -> Logits:
        """Hidden states before the last norm; the caches are extended if all went well."""
        self._check(batch)
        model = self._model(batch.adapters)
        hidden = np.empty((len(batch.tokens), model.config.hidden_size), np.float32)
        extended = {}
        for sequence in np.unique(batch.sequences).tolist():
            rows = np.flatnonzero(batch.sequences == sequence)
            held = self._held(sequence)
            past = held.cache
            if not np.array_equal(batch.positions[rows], len(past) + np.arange(len(rows))):
                raise BackendFailed(f"The positions do not continue sequence {sequence}.")
            if len(past) and held.adapters != batch.adapters:
                raise BackendFailed(f"Sequence {sequence} was computed with {held.adapters}.")
            tokens = batch.tokens[rows].tolist()
            hidden[rows], cache = model.forward(tokens, past)
            extended[sequence] = _Held(cache, batch.adapters)
        self._sequences |= extended
        return hidden

    def _model(self, adapters: AdapterSet) -> NumpyLlama:
        """The model with adapters, made once as long as few sets are used."""
        model = self._merged.get(adapters)
        if model is not None:
            return model
        names = [adapter.name for adapter in adapters]
        if names != sorted(set(names)):
            raise BackendFailed(f"The adapters {names} are not sorted, or one comes twice.")
        unknown = set(names) - self._adapters.keys()
        if unknown:
            raise BackendFailed(f"The adapters {sorted(unknown)} are not loaded.")
        model = self._llama.adapted({self._adapters[a.name]: a.weight for a in adapters})
        if len(self._merged) > _MOST_MERGED:
            self._merged = {(): self._llama}
        self._merged[adapters] = model
        return model

    def _held(self, sequence: int) -> _Held:
        return self._sequences.get(sequence, self._empty)

    def _keep(self, sequence: int, held: _Held) -> None:
        if not 0 <= sequence < self._info.max_sequences:
            raise BackendFailed(f"There is no sequence {sequence}.")
        if len(held.cache):
            self._sequences[sequence] = held
        else:
            self._sequences.pop(sequence, None)

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
        held = sum(len(held.cache) for held in self._sequences.values())
        if held + more > self._info.kv_capacity:
            raise BackendFailed(
                f"The KV cache of {self._info.kv_capacity} tokens holds {held} and cannot take "
                f"{more} more."
            )


def _uses(adapters: AdapterSet, name: str) -> bool:
    return any(adapter.name == name for adapter in adapters)


def _fingerprint(directory: Path) -> str:
    """A hash of configuration and weights, whole: the files are small."""
    made = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "model.safetensors"):
        with (directory / name).open("rb") as file:
            made.update(hashlib.file_digest(file, "blake2b").digest())
    return made.hexdigest()
