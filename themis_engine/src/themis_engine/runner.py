"""The contract of a `ModelRunner`: what a local model must be able to do, token by token.

Everything else (batching, sampling, streaming, stop strings, cancellation, chat, the server) the
engine does with it. `EngineBackend(load)` turns a function that returns a runner into a `Backend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """Limits and facts of a loaded model. All lengths are in tokens.

    `kv_capacity` is shared by all sequences; a copied prefix counts once where `shares_kv` is
    true. `max_sequences` bounds the sequence ids: 0 … max_sequences-1. `max_batch` bounds the
    positions of one `forward`. `batch_invariant` means that a row's logits are the same to the
    last bit whatever else is in the batch.
    """

    vocab_size: int
    context_length: int
    max_sequences: int
    kv_capacity: int
    max_batch: int
    shares_kv: bool = False
    batch_invariant: bool = True
    parameters: int = 0
    size_bytes: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Positions to compute in one step, for many sequences at once.

    `tokens`, `positions` and `sequences` are int32 arrays of one length T: token `tokens[i]`
    stands at `positions[i]` of sequence `sequences[i]`. Positions of one sequence are in rising
    order, without gaps, and continue what the sequence already holds. `logit_rows` are the
    indices i, rising, whose next-token logits are wanted.
    """

    tokens: TokenArray
    positions: TokenArray
    sequences: TokenArray
    logit_rows: TokenArray


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back, for one model. Safe to call from several threads at once."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a generation (end of sequence, end of turn)."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's chat template, if it has one."""
        ...

    @property
    def template_tokens(self) -> dict[str, str]:
        """Texts that templates refer to by name: `bos_token`, `eos_token`."""
        ...

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of `text`, with the model's own start tokens added if it wants them.

        With `parse_special`, special tokens written in the text become their ids, and none is
        added twice; without it they are plain text.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for in the output; special tokens stand for none."""
        ...


@runtime_checkable
class ModelRunner(Protocol):
    """A loaded model. All methods are called from one thread, never at the same time.

    Errors: `forward` raises any `ThemisError`; the requests in that batch fail with it, their
    sequences are freed, and the runner is used on. Other exceptions are reported as
    `BackendFailed`.
    """

    @property
    def info(self) -> RunnerInfo:
        """Limits and facts; constant."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    def forward(self, batch: Batch) -> Logits:
        """Compute the batch, extend each sequence's KV cache by it, and return logits.

        The result is float32 of shape (len(batch.logit_rows), vocab_size), row k for position
        `batch.logit_rows[k]`. It may be a view that the next `forward` overwrites; the engine may
        write into it.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first `length` tokens of `source` the whole content of the empty `target`."""
        ...

    def truncate(self, sequence: int, length: int) -> bool:
        """Keep only the first `length` tokens. False, and nothing changed, if the model cannot."""
        ...

    def free(self, sequence: int) -> None:
        """Empty a sequence. Freeing an empty one is fine."""
        ...

    def close(self) -> None:
        """Release the model. Called once, last."""
        ...
