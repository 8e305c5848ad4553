"""What the tests of the runner share: making one, and batches for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from themis_core.messages import AdapterWeight
from themis_engine import Batch, Logits
from themis_llamacpp.runner import LlamaRunner
from themis_llamacpp.settings import LlamaCppSettings
from themis_tiny_model import path

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@contextmanager
def running(**changes: Any) -> Iterator[LlamaRunner]:
    """A runner of the bundled model, unless a `path` is given."""
    values: dict[str, Any] = {"path": str(path("gguf-f16")), "threads": 1, "parallel": 4} | changes
    runner = LlamaRunner(LlamaCppSettings(**values))
    try:
        yield runner
    finally:
        runner.close()


def part(
    sequence: int,
    start: int,
    tokens: list[int],
    *,
    rows: bool = True,
    adapters: tuple[AdapterWeight, ...] = (),
) -> Batch:
    """Tokens of one sequence; the last one's logits are wanted if `rows`."""
    count = len(tokens)
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        sequences=np.full(count, sequence, np.int32),
        logit_rows=np.array([count - 1] if rows else [], np.int32),
        adapters=adapters,
    )


def joined(*parts: Batch) -> Batch:
    """Several parts in one batch, without logits; their adapters must be the same."""
    tokens, positions, sequences = (
        np.concatenate([getattr(one, name) for one in parts])
        for name in ("tokens", "positions", "sequences")
    )
    return Batch(tokens, positions, sequences, np.array([], np.int32), parts[0].adapters)


def greedy(
    runner: LlamaRunner,
    tokens: list[int],
    count: int,
    *,
    sequence: int = 0,
    held: int = 0,
    adapters: tuple[AdapterWeight, ...] = (),
) -> list[int]:
    """The next `count` tokens; `held` of the tokens are in the sequence already."""
    answer: list[int] = []
    while len(answer) < count:
        logits = runner.forward(part(sequence, held, tokens[held:], adapters=adapters))
        held = len(tokens)
        answer.append(int(logits[0].argmax()))
        tokens = [*tokens, answer[-1]]
    return answer


def logits_of(runner: LlamaRunner, sequence: int, tokens: list[int], held: int = 0) -> Logits:
    """The next-token logits after `tokens`, the first `held` of which are computed."""
    return runner.forward(part(sequence, held, tokens[held:])).copy()
