"""A `ModelRunner` without weights, strict about the contract.

Its next token depends on the whole history of the sequence and on its adapters, so any mix-up of
sequences, positions, adapters or KV contents changes the output. It raises on every breach of the
contract.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import numpy as np

from themis_core.errors import BackendFailed, ModelFileInvalid
from themis_core.messages import AdapterWeight
from themis_engine import Batch, Logits, RunnerInfo

VOCAB = 64
END = 0

AdapterSet = tuple[AdapterWeight, ...]
Meaning = tuple[tuple[str, float], ...]  # Path and weight of each adapter.
Row = np.ndarray[tuple[int], np.dtype[np.float32]]


class ToyTokenizer:
    """Token i is the byte 32+i; token 0 ends."""

    end_tokens = frozenset({END})
    chat_template: str | None = (
        "{% for m in messages %}[{{ m.role[0] }}:{{ m.content }}]{% endfor %}[a:"
    )
    template_tokens: dict[str, str] = {}
    special_tokens: Mapping[str, int] = MappingProxyType({})  # The end has no text.

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        return [max(1, min(byte - 32, VOCAB - 1)) for byte in text.upper().encode()]

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == END else bytes([32 + token_id])


class ToyRunner:
    """Logits from a checksum of the history; `before_forward` lets tests stop or break it.

    With `shares_kv` a copied prefix counts once, as in llama.cpp's unified cache: a cell belongs
    to all sequences that hold it, and is free when none does. Without `truncates` it is like a
    recurrent model: whole sequences are copied, and none is cut. `embedding_size` above 0 gives
    it hidden states. An adapter is any path that does not begin with "broken".
    """

    def __init__(
        self,
        *,
        context: int = 64,
        slots: int = 4,
        kv: int = 128,
        max_batch: int = 32,
        before_forward: Callable[[Batch], None] | None = None,
        end_after: int = 0,
        shares_kv: bool = False,
        truncates: bool = True,
        embedding_size: int = 0,
        causal: bool = True,
    ) -> None:
        self.info = RunnerInfo(
            vocab_size=VOCAB,
            context_length=context,
            max_sequences=slots,
            kv_capacity=kv,
            max_batch=max_batch,
            shares_kv=shares_kv,
            truncates=truncates,
            embedding_size=embedding_size,
            causal=causal,
            fingerprint="toy",
        )
        self.tokenizer = ToyTokenizer()
        self.kv: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        self.cells: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        # What each sequence was computed with: adapters, and what they did then.
        self.computed: dict[int, tuple[AdapterSet, Meaning]] = {}
        self.loaded: dict[str, str] = {}
        self.closed = 0
        self.batches: list[int] = []
        self._new_cells = itertools.count()
        self._before = before_forward
        self._end_after = end_after

    def used_cells(self) -> int:
        """Cells that any sequence holds."""
        return len(set(itertools.chain.from_iterable(self.cells.values())))

    def meaning(self, adapters: AdapterSet) -> Meaning:
        """What the adapters do now: loading another file under a name changes it."""
        return tuple((self.loaded[adapter.name], adapter.weight) for adapter in adapters)

    def forward(self, batch: Batch) -> Logits:
        assert self.info.causal, "an encoder does not generate"
        histories = self._compute(batch)
        meaning = self.meaning(batch.adapters)
        rows = [
            toy_logits(histories[i], self._end_after, meaning) for i in batch.logit_rows.tolist()
        ]
        return np.array(rows, dtype=np.float32).reshape(len(rows), VOCAB)

    def hidden_states(self, batch: Batch) -> Logits:
        size = self.info.embedding_size
        assert size, "this runner has no hidden states"
        assert not len(batch.logit_rows)
        histories = self._compute(batch)
        if not self.info.causal:
            for sequence in set(batch.sequences.tolist()):
                whole = list(self.kv[sequence])
                # What stands behind a token counts, too: texts cut in pieces come out otherwise.
                for i in np.flatnonzero(batch.sequences == sequence).tolist():
                    histories[i] = [*whole, *histories[i]]
                self.free(sequence)
        meaning = self.meaning(batch.adapters)
        return np.stack([toy_state(history, size, meaning) for history in histories])

    def copy(self, source: int, target: int, length: int) -> None:
        self._alive(source, target)
        assert source != target
        assert not self.kv[target], "the target of a copy is not empty"
        assert 0 <= length <= len(self.kv[source])
        assert self.info.truncates or length == len(self.kv[source]), "only whole sequences"
        if not length:
            return
        if self.info.shares_kv:
            self.cells[target] = self.cells[source][:length]
        else:
            self._reserve(length)
            self.cells[target] = self._take(length)
        self.kv[target] = self.kv[source][:length]
        self.computed[target] = self.computed[source]

    def truncate(self, sequence: int, length: int) -> bool:
        self._alive(sequence)
        assert length >= 0
        if length >= len(self.kv[sequence]):
            return True
        if not self.info.truncates:
            return False
        self._keep(sequence, length)
        return True

    def free(self, sequence: int) -> None:
        self._alive(sequence)
        self._keep(sequence, 0)

    def load_adapter(self, name: str, path: str) -> None:
        self._alive()
        assert name not in self.loaded, "an adapter of that name is loaded"
        if path.startswith("broken"):
            raise ModelFileInvalid(f"The adapter {path} is broken.")
        self.loaded[name] = path

    def unload_adapter(self, name: str) -> None:
        self._alive()
        assert name in self.loaded, "no adapter of that name is loaded"
        for sequence, (adapters, _) in self.computed.items():
            assert name not in {a.name for a in adapters}, f"sequence {sequence} uses the adapter"
        del self.loaded[name]

    def save(self, sequence: int) -> bytes:
        self._alive(sequence)
        assert self.kv[sequence], "an empty sequence has no state"
        state = msgspec.json.encode((self.kv[sequence], *self.computed[sequence]))
        return zlib.crc32(state).to_bytes(4, "little") + state

    def restore(self, sequence: int, state: bytes, length: int) -> None:
        self._alive(sequence)
        assert not self.kv[sequence], "the target of a restore is not empty"
        if zlib.crc32(state[4:]).to_bytes(4, "little") != state[:4]:
            raise BackendFailed("the state is damaged")
        tokens, adapters, meaning = msgspec.json.decode(
            state[4:], type=tuple[list[int], AdapterSet, Meaning]
        )
        if len(tokens) != length:
            raise BackendFailed(f"the state is of {len(tokens)} tokens, not {length}")
        self._reserve(length)
        self.cells[sequence] = self._take(length)
        self.kv[sequence] = tokens
        self.computed[sequence] = (adapters, meaning)

    def close(self) -> None:
        self.closed += 1

    def _compute(self, batch: Batch) -> list[list[int]]:
        """Extend the sequences; gives the history up to each position, that one included."""
        self._alive()
        assert 0 < len(batch.tokens) <= self.info.max_batch
        assert list(batch.logit_rows) == sorted(set(batch.logit_rows.tolist()))
        names = [adapter.name for adapter in batch.adapters]
        assert names == sorted(set(names)), "adapters must be sorted, and none come twice"
        assert self.loaded.keys() >= set(names), "an adapter is not loaded"
        if self._before is not None:
            self._before(batch)
        self._reserve(len(batch.tokens))
        self.batches.append(len(batch.tokens))
        company = (batch.adapters, self.meaning(batch.adapters))
        histories = []
        for token, position, sequence in zip(
            batch.tokens.tolist(), batch.positions.tolist(), batch.sequences.tolist(), strict=True
        ):
            held = self.kv[sequence]
            assert position == len(held), "a position does not continue its sequence"
            assert position < self.info.context_length, "a position is outside the context"
            assert self.computed.setdefault(sequence, company) == company, (
                "a sequence goes on with other adapters than it was computed with"
            )
            held.append(token)
            self.cells[sequence] += self._take(1)
            histories.append(list(held))
        return histories

    def _alive(self, *sequences: int) -> None:
        assert not self.closed, "the runner is closed"
        assert all(sequence in self.kv for sequence in sequences), "there is no such sequence"

    def _keep(self, sequence: int, length: int) -> None:
        self.kv[sequence] = self.kv[sequence][:length]
        self.cells[sequence] = self.cells[sequence][:length]
        if not length:
            self.computed.pop(sequence, None)

    def _reserve(self, count: int) -> None:
        if self.used_cells() + count > self.info.kv_capacity:
            raise BackendFailed("the KV cache is full")

    def _take(self, count: int) -> list[int]:
        return list(itertools.islice(self._new_cells, count))


def toy_logits(history: list[int], end_after: int = 0, adapters: Meaning = ()) -> Row:
    """Pseudo-random logits, a function of the history and the adapters alone."""
    logits = _random(history, adapters).normal(0, 2, VOCAB).astype(np.float32)
    logits[END] = 50.0 if end_after and len(history) >= end_after else -50.0
    return logits


def toy_state(history: list[int], size: int, adapters: Meaning = ()) -> Row:
    """A pseudo-random hidden state, a function of the history and the adapters alone."""
    return _random([*history, VOCAB], adapters).normal(0, 1, size).astype(np.float32)


def greedy(prompt: list[int], count: int, adapters: Meaning = ()) -> list[int]:
    """What greedy decoding of one undisturbed sequence gives."""
    history = list(prompt)
    for _ in range(count):
        history.append(int(toy_logits(history, adapters=adapters).argmax()))
    return history[len(prompt) :]


def _random(history: list[int], adapters: Meaning) -> np.random.Generator:
    names = msgspec.json.encode(adapters) if adapters else b""
    return np.random.default_rng(zlib.crc32(bytes(history) + names))
