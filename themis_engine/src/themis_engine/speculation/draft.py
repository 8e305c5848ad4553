"""A small draft model guesses what the large one will say.

Both must have the same tokens. The draft model draws with the same noise as the target (see
`sampler.py`), so its guesses agree as often under sampling as the two distributions allow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from themis_core.errors import ModelLoadFailed
from themis_engine.runner import Batch, Logits, ModelRunner
from themis_engine.sampler import InvalidLogits, choose
from themis_engine.sequence import Sequence


@dataclass(slots=True)
class _Held:
    """What the draft model has computed of a sequence, drafts included."""

    slot: int
    tokens: list[int]


class DraftModel:
    """A `Proposer` with a `ModelRunner` of its own, which it closes."""

    def __init__(self, runner: ModelRunner, target: ModelRunner, limit: int) -> None:
        """`limit` bounds the drafts of a sequence.

        Raises `ModelLoadFailed`, and closes `runner`, if it does not fit to the target.
        """
        self._runner = runner
        self._limit = limit
        try:
            _check_same_tokens(runner, target)
        except BaseException:
            runner.close()
            raise
        self._held: dict[Sequence, _Held] = {}
        self._slots = list(range(runner.info.max_sequences))
        self._used = 0
        self._cost = 0.0

    @property
    def cost(self) -> float:
        """Seconds for one more token of all sequences, as measured lately."""
        return self._cost

    def propose(self, wanted: Mapping[Sequence, int]) -> None:
        """Fill in `drafts`, at most so many."""
        for sequence in wanted:
            sequence.drafts = []
        ready = [s for s, count in wanted.items() if count and self._catch_up(s)]
        # What `_catch_up` left: the last token, whose logits give the first draft.
        length = 0
        while active := [s for s in ready if len(s.drafts) == length and length < wanted[s]]:
            began = time.perf_counter()
            logits = self._forward({s: [(s.tokens + s.drafts)[-1]] for s in active})
            for row, sequence in zip(logits, active, strict=True):
                token = _draw(row, sequence)
                if token is not None:
                    sequence.drafts.append(token)
            length += 1
            self._cost += 0.1 * (time.perf_counter() - began - self._cost)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        held = self._held.pop(sequence, None)
        if held is not None:
            self._used -= len(held.tokens)
            self._runner.free(held.slot)
            self._slots.append(held.slot)

    def close(self) -> None:
        """Free the draft model."""
        self._runner.close()

    def _catch_up(self, sequence: Sequence) -> bool:
        """Compute all of a sequence but its last token. False if that is not done yet.

        A long prompt takes several steps, so that nobody waits for it longer than for a batch.
        """
        held = self._held.get(sequence)
        if held is None:
            if not self._slots:
                return False
            held = self._held[sequence] = _Held(self._slots.pop(), [])
        wanted = sequence.tokens[:-1]
        same = _common(held.tokens, wanted)
        if same < len(held.tokens):
            self._runner.truncate(held.slot, same)
            self._used -= len(held.tokens) - same
            del held.tokens[same:]
        info = self._runner.info
        missing = wanted[same : same + info.max_batch]
        # Room for the drafts too.
        if len(sequence.tokens) + self._limit > info.context_length:
            return False
        if self._used + len(missing) + self._limit * len(self._held) > info.kv_capacity:
            return False
        if missing:
            self._forward({sequence: missing}, logits=False)
        return len(held.tokens) == len(wanted)

    def _forward(self, new: Mapping[Sequence, list[int]], *, logits: bool = True) -> Logits:
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        for sequence, more in new.items():
            held = self._held[sequence]
            tokens += more
            positions += range(len(held.tokens), len(held.tokens) + len(more))
            slots += [held.slot] * len(more)
            rows.append(len(tokens) - 1)
            held.tokens += more
            self._used += len(more)
        return self._runner.forward(
            Batch(
                tokens=np.array(tokens, dtype=np.int32),
                positions=np.array(positions, dtype=np.int32),
                sequences=np.array(slots, dtype=np.int32),
                logit_rows=np.array(rows if logits else [], dtype=np.int32),
            )
        )


def _draw(row: Logits, sequence: Sequence) -> int | None:
    params = sequence.sampling
    position = len(sequence.tokens) + len(sequence.drafts)
    try:
        return int(row.argmax()) if params.greedy else choose(row, params, sequence.seed, position)
    except InvalidLogits:
        return None


def _common(a: list[int], b: list[int]) -> int:
    if b[: len(a)] == a:
        return len(a)
    return next(i for i, (x, y) in enumerate(zip([*a, -1], [*b, -2], strict=False)) if x != y)


def _check_same_tokens(draft: ModelRunner, target: ModelRunner) -> None:
    size = target.info.vocab_size
    if draft.info.vocab_size != size:
        raise ModelLoadFailed(
            f"The draft model has {draft.info.vocab_size} tokens, but the model has {size}.",
            remedy="Use a draft model of the same family, with the same tokenizer.",
        )
    mine, theirs = draft.tokenizer.token_bytes, target.tokenizer.token_bytes
    different = next((i for i in range(size) if mine(i) != theirs(i)), None)
    if different is not None:
        raise ModelLoadFailed(
            f"Token {different} is {mine(different)!r} in the draft model, but "
            f"{theirs(different)!r} in the model.",
            remedy="Use a draft model of the same family, with the same tokenizer.",
        )
