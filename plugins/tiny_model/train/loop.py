"""The training loop, for whole models and for adapters alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from .data import Batch
from .model import Llama
from .optimiser import rate_factor
from .settings import Run

Checkpoint = Callable[[int], None]


def train(
    model: Llama,
    data: Iterator[Batch],
    optimisers: list[torch.optim.Optimizer],
    run: Run,
    label: str,
    checkpoint: Checkpoint | None = None,
    report_every: int = 50,
) -> float:
    """Runs ``run.steps`` steps and returns the last smoothed loss (nats per answer token).

    Matrix products run in bfloat16, which doubles the speed on processors that have it; the
    weights and their updates stay float32.
    """
    rates = [group["lr"] for o in optimisers for group in o.param_groups]
    started, smooth = time.monotonic(), 0.0
    for step in range(run.steps):
        factor = rate_factor(step, run)
        groups = [group for o in optimisers for group in o.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        loss, answer_loss = _loss(model, next(data))
        loss.backward()
        nn.utils.clip_grad_norm_([w for w in model.parameters() if w.requires_grad], 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        smooth = answer_loss if step == 0 else 0.95 * smooth + 0.05 * answer_loss
        if step % report_every == 0 or step == run.steps - 1:
            seconds = time.monotonic() - started
            text = f"{label} step {step}/{run.steps} loss {smooth:.4f} {seconds:.0f} s"
            print(text, flush=True)  # noqa: T201
        if checkpoint is not None and step and step % 400 == 0:
            checkpoint(step)
    return smooth


def _loss(model: Llama, batch: Batch) -> tuple[torch.Tensor, float]:
    """The weighted loss, and the plain loss of the answers alone for the report."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.states(batch.ids, batch.mask())
        # The token at i is predicted from the state at i - 1; weights of 0 need no logits at all.
        weight = batch.weight[:, 1:]
        chosen = weight > 0
        logits = model.logits(states[:, :-1][chosen])
    each = functional.cross_entropy(logits.float(), batch.ids[:, 1:][chosen], reduction="none")
    weight = weight[chosen]
    answers = each.detach()[weight == 1.0]
    return (each * weight).sum() / weight.sum(), float(answers.mean())
