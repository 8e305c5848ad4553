"""A small runner without weights, with one fault each.

Unlike `ToyRunner` it does not complain, as real libraries do not: it just computes wrong.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import zlib

import msgspec
import numpy as np

from themis_core.errors import BackendFailed
from themis_engine import Batch, Logits, RunnerInfo
from themis_testkit.fakes.toy_runner import VOCAB, ToyTokenizer, toy_logits, toy_state


class Plain:
    """Without a fault."""

    def __init__(self) -> None:
        self.info = RunnerInfo(
            vocab_size=VOCAB,
            context_length=64,
            max_sequences=4,
            kv_capacity=128,
            max_batch=32,
            embedding_size=4,
            fingerprint="plain",
        )
        self.tokenizer = ToyTokenizer()
        self.kv: dict[int, list[int]] = {i: [] for i in range(4)}

    def histories(self, batch: Batch) -> list[list[int]]:
        """What each position of the batch has before it, itself included."""
        if sum(map(len, self.kv.values())) + len(batch.tokens) > self.info.kv_capacity:
            raise BackendFailed("the KV cache is full")
        found = []
        for token, sequence in zip(batch.tokens.tolist(), batch.sequences.tolist(), strict=True):
            self.kv[sequence].append(token)
            found.append(list(self.kv[sequence]))
        return found

    def forward(self, batch: Batch) -> Logits:
        histories = self.histories(batch)
        return self.rows([histories[i] for i in batch.logit_rows.tolist()])

    def rows(self, histories: list[list[int]]) -> Logits:
        made = [toy_logits(history) for history in histories]
        return np.array(made, np.float32).reshape(len(made), VOCAB)

    def hidden_states(self, batch: Batch) -> Logits:
        return np.stack([toy_state(history, 4) for history in self.histories(batch)])

    def copy(self, source: int, target: int, length: int) -> None:
        self.kv[target] = self.kv[source][:length]

    def truncate(self, sequence: int, length: int) -> bool:
        self.kv[sequence] = self.kv[sequence][:length]
        return True

    def free(self, sequence: int) -> None:
        self.kv[sequence] = []

    def save(self, sequence: int) -> bytes:
        state = msgspec.json.encode(self.kv[sequence])
        return zlib.crc32(state).to_bytes(4, "little") + state

    def restore(self, sequence: int, state: bytes, length: int) -> None:
        if zlib.crc32(state[4:]).to_bytes(4, "little") != state[:4] or len(state) < 5:
            raise BackendFailed("the state is damaged")
        tokens = msgspec.json.decode(state[4:], type=list[int])
        if len(tokens) != length:
            raise BackendFailed(f"the state has {len(tokens)} tokens, not {length}")
        self.kv[sequence] = tokens

    def close(self) -> None:
        return None


class RowsReversed(Plain):
    """the rows of the logits are in the wrong order"""

    def rows(self, histories: list[list[int]]) -> Logits:
        return super().rows(histories)[::-1]


class AllRows(Plain):
    """forward gives a row for every position"""

    def forward(self, batch: Batch) -> Logits:
        return self.rows(self.histories(batch))


class LastRowsOnly(Plain):
    """forward gives the logits of the last positions, whichever were asked for"""

    def forward(self, batch: Batch) -> Logits:
        histories = self.histories(batch)
        return self.rows(histories[len(histories) - len(batch.logit_rows) :])


class DoublePrecision(Plain):
    """the logits are float64"""

    def rows(self, histories: list[list[int]]) -> Logits:
        return super().rows(histories).astype(np.float64)


class NarrowRows(Plain):
    """the logits lack the last token of the vocabulary"""

    def rows(self, histories: list[list[int]]) -> Logits:
        return super().rows(histories)[:, :-1]


class NotANumber(Plain):
    """one logit is NaN"""

    def rows(self, histories: list[list[int]]) -> Logits:
        made = super().rows(histories)
        made[:, 7] = np.nan
        return made


class NoHistory(Plain):
    """the logits depend on the last token alone"""

    def rows(self, histories: list[list[int]]) -> Logits:
        return super().rows([history[-1:] for history in histories])


class NoOrder(Plain):
    """the logits do not depend on the order of the tokens before"""

    def rows(self, histories: list[list[int]]) -> Logits:
        return super().rows([[*sorted(h[:-1]), h[-1]] for h in histories])


class Window(Plain):
    """only the last three tokens count"""

    def rows(self, histories: list[list[int]]) -> Logits:
        return super().rows([history[-3:] for history in histories])


class BatchStartsAnew(Plain):
    """a forward forgets what the sequence holds"""

    def histories(self, batch: Batch) -> list[list[int]]:
        for sequence in set(batch.sequences.tolist()):
            self.kv[sequence] = []
        return super().histories(batch)


class SequencesMix(Plain):
    """all positions of a batch go to its first sequence"""

    def histories(self, batch: Batch) -> list[list[int]]:
        one = np.full_like(batch.sequences, batch.sequences[0])
        return super().histories(dataclasses.replace(batch, sequences=one))


class SortsBatch(Plain):
    """the batch is sorted by sequence, and the rows are not put back"""

    def forward(self, batch: Batch) -> Logits:
        order = np.argsort(batch.sequences, kind="stable")
        histories = self.histories(
            dataclasses.replace(batch, tokens=batch.tokens[order], sequences=batch.sequences[order])
        )
        return self.rows([histories[i] for i in batch.logit_rows.tolist()])


class GivesItsMemory(Plain):
    """the result is memory that later results are copied from"""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[tuple[int, ...], Logits] = {}

    def rows(self, histories: list[list[int]]) -> Logits:
        key = tuple(token for history in histories for token in [*history, -1])
        if key not in self.cache:
            self.cache[key] = super().rows(histories)
        return self.cache[key]


class WritesIntoBatch(Plain):
    """forward changes the arrays of the batch"""

    def histories(self, batch: Batch) -> list[list[int]]:
        found = super().histories(batch)
        batch.positions[:] = 0
        return found


class NotInvariant(Plain):
    """company changes the last bits, though batch_invariant is declared"""

    def forward(self, batch: Batch) -> Logits:
        return super().forward(batch) + np.float32(1e-6 * len(set(batch.sequences.tolist())))


class SmallBatch(Plain):
    """a batch of max_batch positions raises"""

    def histories(self, batch: Batch) -> list[list[int]]:
        if len(batch.tokens) >= self.info.max_batch:
            raise BackendFailed("the batch is too large")
        return super().histories(batch)


class InfoChanges(Plain):
    """info changes while it works"""

    def histories(self, batch: Batch) -> list[list[int]]:
        self.info = dataclasses.replace(self.info, kv_capacity=self.info.kv_capacity - 1)
        return super().histories(batch)


class WrongIds(Plain):
    """the tokenizer gives ids beyond the vocabulary"""

    class Tokenizer(ToyTokenizer):
        def encode(self, text: str, *, parse_special: bool) -> list[int]:
            return [token + VOCAB for token in super().encode(text, parse_special=parse_special)]

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = self.Tokenizer()


class KeepsMemory(Plain):
    """each forward keeps its result for ever"""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Logits] = []

    def rows(self, histories: list[list[int]]) -> Logits:
        self.results.append(super().rows(histories))
        return self.results[-1].copy()


class LeavesFile(Plain):
    """close leaves a file open"""

    def __init__(self) -> None:
        super().__init__()
        os.open(__file__, os.O_RDONLY)


class LeavesThread(Plain):
    """close leaves a thread running"""

    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=threading.Event().wait, daemon=True).start()


MUTANTS = tuple(
    kind for kind in list(globals().values()) if isinstance(kind, type) and Plain in kind.__bases__
)
