"""Turns conversations into token rows: several conversations share a row, none sees another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .chat import ASSISTANT, END, PAD, render
from .corpus import Conversation
from .corpus.small_tasks import copying
from .settings import Run

Sampler = Callable[[random.Random], Conversation]
CHUNK = 1000
COPYING_SHARE = 0.8


@dataclass(frozen=True)
class Batch:
    """``ids`` and ``owner`` are (rows, tokens); ``weight`` is the loss weight of *predicting* each.

    ``owner`` numbers the conversation a token belongs to, from 0 within each row; -1 is padding.
    """

    ids: Tensor
    owner: Tensor
    weight: Tensor

    def mask(self) -> Tensor:
        """True where a token may look: earlier, and in its own conversation."""
        same = self.owner[:, :, None] == self.owner[:, None, :]
        tokens = self.ids.shape[1]
        return (same & torch.ones(tokens, tokens, dtype=torch.bool).tril()).unsqueeze(1)


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids, with the loss weight of each."""

    ids: list[int]
    weight: list[float]


class Encoder:
    """Tokenises conversations and marks what the assistant says (including its end of turn)."""

    def __init__(self, tokenizer: Tokenizer, prompt_weight: float) -> None:
        self.tokenizer = tokenizer
        self.prompt_weight = prompt_weight
        self.opening = tokenizer.encode(ASSISTANT).ids
        self.end = tokenizer.token_to_id(END)

    def encode(self, conversations: list[Conversation]) -> list[Encoded]:
        """Encodes many at once; each ends after its last end of turn."""
        texts = [render(c.messages, c.tools).rstrip("\n") for c in conversations]
        return [self._weigh(e.ids) for e in self.tokenizer.encode_batch_fast(texts)]

    def _weigh(self, ids: list[int]) -> Encoded:
        weight = [self.prompt_weight] * len(ids)
        width, position = len(self.opening), 0
        while position < len(ids):
            if (
                ids[position] == self.opening[0]
                and ids[position : position + width] == self.opening
            ):
                position += width
                while position < len(ids) and ids[position] != self.end:
                    weight[position] = 1.0
                    position += 1
                weight[position] = 1.0
            position += 1
        weight[0] = 0.0
        return Encoded(ids, weight)


def batches(sample: Sampler, tokenizer: Tokenizer, run: Run, seed: int) -> Iterator[Batch]:
    """An endless stream of batches, the same for the same seed.

    Conversations too long for a short row wait for the next long batch.
    """
    rng = random.Random(seed)
    encoder = Encoder(tokenizer, run.prompt_weight)
    pad = tokenizer.token_to_id(PAD)

    def copying_first(rng: random.Random) -> Conversation:
        return copying(rng) if rng.random() < COPYING_SHARE else sample(rng)

    short: list[Encoded] = []
    long: list[Encoded] = []
    step = 0
    while True:
        while len(short) < CHUNK:
            source = copying_first if step < run.copying_steps else sample
            for item in encoder.encode([source(rng) for _ in range(CHUNK)]):
                if len(item.ids) <= run.row_length:
                    short.append(item)
                elif len(item.ids) <= run.long_length:
                    long.append(item)
        step += 1
        if run.long_every and step % run.long_every == 0:
            rows = max(1, run.rows * run.row_length // run.long_length)
            yield _pack(long, short, rows, run.long_length, pad)
        else:
            yield _pack(short, short, run.rows, run.row_length, pad)


def _pack(first: list[Encoded], second: list[Encoded], rows: int, length: int, pad: int) -> Batch:
    """Fills ``rows`` rows from the ends of the two lists, the first list first."""
    ids = torch.full((rows, length), pad)
    owner = torch.full((rows, length), -1)
    weight = torch.zeros(rows, length)
    for row in range(rows):
        used = number = misses = 0
        while misses < 8:
            source = first if first and number == 0 else second
            item = source.pop()
            size = len(item.ids)
            if used + size > length:
                source.insert(0, item)
                misses += 1
                continue
            ids[row, used : used + size] = torch.tensor(item.ids)
            owner[row, used : used + size] = number
            weight[row, used : used + size] = torch.tensor(item.weight)
            used, number = used + size, number + 1
    return Batch(ids, owner, weight)
