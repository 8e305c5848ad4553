"""Greedy answers from the torch model, many prompts at once."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from .chat import END, PAD
from .model import Llama


@torch.no_grad()
def answer(
    model: Llama, tokenizer: Tokenizer, prompts: list[str], limit: int = 96, group: int = 64
) -> list[str]:
    """Completes each rendered prompt greedily, in float32, up to its end of turn."""
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    results = [""] * len(prompts)
    for start in range(0, len(order), group):
        members = order[start : start + group]
        for index, ids in zip(
            members, _complete(model, tokenizer, [encoded[i] for i in members], limit), strict=True
        ):
            results[index] = tokenizer.decode(ids, skip_special_tokens=True)
    return results


def _complete(
    model: Llama, tokenizer: Tokenizer, prompts: list[list[int]], limit: int
) -> list[list[int]]:
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    lengths = [len(ids) for ids in prompts]
    rows = [list(ids) for ids in prompts]
    active = list(range(len(rows)))
    for _ in range(limit):
        width = max(len(rows[i]) for i in active)
        # Padding stands on the right, where the causal mask hides it from every real token.
        ids = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in active])
        last = torch.tensor([len(rows[i]) - 1 for i in active])
        states = model.states(ids)[torch.arange(len(active)), last]
        chosen = model.logits(states).argmax(dim=-1).tolist()
        for i, token in zip(active, chosen, strict=True):
            rows[i].append(token)
        active = [i for i in active if rows[i][-1] != end]
        if not active:
            break
    return [[t for t in row[n:] if t != end] for row, n in zip(rows, lengths, strict=True)]
