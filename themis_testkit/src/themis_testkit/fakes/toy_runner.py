"""A `ModelRunner` without weights, strict about the contract.

Its next token depends on the whole history of the sequence, so any mix-up of sequences,
positions or KV contents changes the output. It raises on every breach of the contract.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from themis_core.errors import BackendFailed
from themis_engine import Batch, Logits, RunnerInfo

VOCAB = 64
END = 0


class ToyTokenizer:
    """Token i is the byte 32+i; token 0 ends."""

    end_tokens = frozenset({END})
    chat_template: str | None = (
        "{% for m in messages %}[{{ m.role[0] }}:{{ m.content }}]{% endfor %}[a:"
    )
    template_tokens: dict[str, str] = {}

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        return [max(1, min(byte - 32, VOCAB - 1)) for byte in text.upper().encode()]

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == END else bytes([32 + token_id])


class ToyRunner:
    """Logits from a checksum of the history; `before_forward` lets tests stop or break it."""

    def __init__(
        self,
        *,
        context: int = 64,
        slots: int = 4,
        kv: int = 128,
        max_batch: int = 32,
        before_forward: Callable[[Batch], None] | None = None,
        end_after: int = 0,
    ) -> None:
        self.info = RunnerInfo(
            vocab_size=VOCAB,
            context_length=context,
            max_sequences=slots,
            kv_capacity=kv,
            max_batch=max_batch,
        )
        self.tokenizer = ToyTokenizer()
        self.kv: dict[int, list[int]] = {slot: [] for slot in range(slots)}
        self.closed = 0
        self.batches: list[int] = []
        self._before = before_forward
        self._end_after = end_after

    def forward(self, batch: Batch) -> Logits:
        assert not self.closed
        assert 0 < len(batch.tokens) <= self.info.max_batch
        assert list(batch.logit_rows) == sorted(set(batch.logit_rows.tolist()))
        if self._before is not None:
            self._before(batch)
        self.batches.append(len(batch.tokens))
        wanted = set(batch.logit_rows.tolist())
        rows = []
        for i, (token, position, sequence) in enumerate(
            zip(
                batch.tokens.tolist(),
                batch.positions.tolist(),
                batch.sequences.tolist(),
                strict=True,
            )
        ):
            held = self.kv[sequence]
            assert position == len(held), "a position does not continue its sequence"
            held.append(token)
            if sum(map(len, self.kv.values())) > self.info.kv_capacity:
                raise BackendFailed("the KV cache is full")
            if i in wanted:
                rows.append(toy_logits(held, self._end_after))
        return np.array(rows, dtype=np.float32).reshape(len(rows), VOCAB)

    def copy(self, source: int, target: int, length: int) -> None:
        assert not self.kv[target]
        self.kv[target] = self.kv[source][:length]

    def truncate(self, sequence: int, length: int) -> bool:
        self.kv[sequence] = self.kv[sequence][:length]
        return True

    def free(self, sequence: int) -> None:
        self.kv[sequence] = []

    def close(self) -> None:
        self.closed += 1


def toy_logits(
    history: list[int], end_after: int = 0
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Pseudo-random logits, a function of the history alone."""
    seed = zlib.crc32(bytes(history))
    logits = np.random.default_rng(seed).normal(0, 2, VOCAB).astype(np.float32)
    logits[END] = 50.0 if end_after and len(history) >= end_after else -50.0
    return logits


def greedy(prompt: list[int], count: int) -> list[int]:
    """What greedy decoding of one undisturbed sequence gives."""
    history = list(prompt)
    for _ in range(count):
        history.append(int(toy_logits(history).argmax()))
    return history[len(prompt) :]
