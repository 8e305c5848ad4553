"""The contract of a `ModelRunner`: what a local model must be able to do, token by token.

Everything else (batching, sampling, streaming, stop strings, cancellation, chat, the server) the
engine does with it. `EngineBackend(load)` turns a function that returns a runner into a `Backend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from themis_core.messages import AdapterWeight

TokenArray = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]
Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """Limits and facts of a loaded model. All lengths are in tokens.

    `kv_capacity` is shared by all sequences; a copied prefix counts once where `shares_kv` is
    true. `max_sequences` bounds the sequence ids: 0 … max_sequences-1; those that no running
    sequence needs keep prefixes. `max_batch` bounds the positions of one `forward`. `truncates`
    is false for models whose state cannot be cut (recurrent ones): then `copy` takes whole
    sequences only. `batch_invariant` means that a row's logits are the same to the last bit
    whatever else is in the batch. `ragged` is false where a sequence with more than one position in
    a batch costs a pass of its own. `fingerprint` tells models apart whose KV must not be mixed.

    `embedding_size` is the width of an `EmbeddingRunner`'s hidden states, and `pooling` how the
    model was trained to make one vector of them. `causal` is false for encoders, which do not
    generate.
    """

    vocab_size: int
    context_length: int
    max_sequences: int
    kv_capacity: int
    max_batch: int
    shares_kv: bool = False
    truncates: bool = True
    batch_invariant: bool = True
    ragged: bool = True
    embedding_size: int = 0
    pooling: Pooling = "last"
    causal: bool = True
    parameters: int = 0
    size_bytes: int = 0
    description: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Positions to compute in one step, for many sequences at once.

    `tokens`, `positions` and `sequences` are int32 arrays of one length T: token `tokens[i]`
    stands at `positions[i]` of sequence `sequences[i]`. Positions of one sequence are in rising
    order, without gaps, and continue what the sequence already holds. `logit_rows` are the
    indices i, rising, whose next-token logits are wanted. `adapters` are the LoRA adapters that
    the whole batch is computed with, sorted by name; only an `AdapterRunner` gets any.
    """

    tokens: TokenArray
    positions: TokenArray
    sequences: TokenArray
    logit_rows: TokenArray
    adapters: tuple[AdapterWeight, ...] = ()


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

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Text → id of every token that has a text and yet stands for no bytes in the output.

        These are control tokens such as `<|im_end|>`. What a model writes as text, `<tool_call>`
        for instance, is not among them, even if it is one token.
        """
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
class FramedTokenizer(Tokenizer, Protocol):
    """A tokenizer of a model that wants more around a text that is embedded than a start."""

    @property
    def text_end(self) -> tuple[int, ...]:
        """Ids that follow such a text: a separator, or the end of text."""
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


class StepInterrupted(Exception):
    """`forward` has ended early, as `interrupt` asked for."""


@runtime_checkable
class InterruptibleRunner(ModelRunner, Protocol):
    """A runner that can stop in the middle of a batch when nobody waits for it any more."""

    def interrupt(self) -> None:
        """From any thread: a `forward` that computes now raises `StepInterrupted` soon.

        Then no sequence has changed. A batch that is finished, or begins later, is not concerned.
        """
        ...


@runtime_checkable
class AdapterRunner(ModelRunner, Protocol):
    """A runner with LoRA adapters. KV computed under one set is never used under another."""

    def load_adapter(self, name: str, path: str) -> None:
        """Make an adapter usable in batches. Raises `ModelFileInvalid` with the true cause."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Forget a loaded adapter; no sequence is using it."""
        ...


@runtime_checkable
class EmbeddingRunner(ModelRunner, Protocol):
    """A runner that gives hidden states; its `info.embedding_size` is above 0."""

    def hidden_states(self, batch: Batch) -> Logits:
        """Compute the batch as `forward` does; float32 (len(batch.tokens), embedding_size).

        These are the states after the last layer and its norm. `logit_rows` is empty.
        A model that is not `causal` gets each sequence whole, in one batch, from position 0.
        """
        ...


@runtime_checkable
class StateRunner(ModelRunner, Protocol):
    """A runner whose KV cache can leave the model and come back, bit for bit."""

    def save(self, sequence: int) -> bytes:
        """The state of a sequence."""
        ...

    def restore(self, sequence: int, state: bytes, length: int) -> None:
        """Put a saved state of `length` tokens into an empty sequence. Raises `BackendFailed`."""
        ...
