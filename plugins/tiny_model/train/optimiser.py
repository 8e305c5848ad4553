"""Muon for the matrices, AdamW for the rest: on two cores it needs about half of AdamW's steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .settings import Run


def orthogonalise(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest (roughly) orthogonal matrix, by an odd polynomial in Newton-Schulz style."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, so that every direction of a matrix learns."""

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Applies one update; gradients must be filled."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["velocity"] = torch.zeros_like(weight)
                velocity = state["velocity"]
                velocity.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(velocity, group["momentum"])
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - 0.01 * group["lr"])
                weight.add_(orthogonalise(ahead), alpha=-group["lr"] * scale)


def optimisers(model: nn.Module, run: Run) -> list[torch.optim.Optimizer]:
    """The two optimisers of a full training run."""
    matrices = [w for n, w in model.named_parameters() if w.ndim == 2 and "embed" not in n]
    others = [w for n, w in model.named_parameters() if w.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=run.muon_rate),
        torch.optim.AdamW(others, lr=run.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, run: Run) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then a cosine to the floor."""
    if step < run.warmup:
        return (step + 1) / run.warmup
    done = (step - run.warmup) / max(1, (run.schedule or run.steps) - run.warmup)
    return run.floor + (1 - run.floor) * 0.5 * (1 + math.cos(math.pi * done))
