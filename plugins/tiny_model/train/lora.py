"""LoRA: a low-rank addition to chosen matrices of a frozen model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from .model import Llama
from .settings import LORA_ALPHA, LORA_RANK, LORA_TARGETS


class LoraLinear(nn.Module):
    """``W x + (alpha / rank) · B A x`` with ``W`` frozen and ``B`` starting at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = base.weight
        self.weight.requires_grad_(False)
        outputs, inputs = base.weight.shape
        self.lora_A = nn.Linear(inputs, LORA_RANK, bias=False)
        self.lora_B = nn.Linear(LORA_RANK, outputs, bias=False)
        nn.init.normal_(self.lora_A.weight, std=inputs**-0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        addition = self.lora_B(self.lora_A(x))
        return functional.linear(x, self.weight) + (LORA_ALPHA / LORA_RANK) * addition


def with_lora(base: Llama) -> Llama:
    """A copy of ``base`` whose only trainable weights are the new A and B matrices."""
    model = copy.deepcopy(base)
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in LORA_TARGETS and isinstance(child, nn.Linear):
                setattr(parent, name, LoraLinear(child))
    return model


def lora_optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """AdamW on the adapter's matrices."""
    weights = [w for w in model.parameters() if w.requires_grad]
    return [torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def lora_weights(model: nn.Module) -> dict[str, Tensor]:
    """The adapter alone, as ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``."""
    return {n: w for n, w in model.state_dict().items() if ".lora_" in n}
