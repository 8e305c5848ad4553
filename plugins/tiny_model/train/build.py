"""The order of work: tokenizer, model, draft model, adapters, files, report."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from . import export_gguf, export_hf
from .chat import render
from .corpus import Mixture
from .corpus.mixture import adapter_mixture
from .data import batches
from .lora import lora_optimisers, lora_weights, with_lora
from .loop import train
from .model import Llama
from .optimiser import optimisers
from .settings import BASE, BASE_RUN, DRAFT, DRAFT_RUN, LORA_RUN, ModelSize, Run
from .tokenizer import train_tokenizer

TOKENIZER_SAMPLES = 40_000
ADAPTERS = ("german", "json")


def build(out: Path, seed: int, quick: bool, work: Path) -> None:
    """Trains everything from ``seed`` and writes the shipped files into ``out``.

    ``work`` keeps what is trained, so that a run that was stopped goes on after its last stage.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    mixture = Mixture()
    tokenizer = _tokenizer(mixture, seed, work)
    base_run, draft_run, lora_run = BASE_RUN, DRAFT_RUN, LORA_RUN
    if quick:
        base_run, draft_run = base_run.shortened(150), draft_run.shortened(80)
        lora_run = lora_run.shortened(40)

    base = _whole(BASE, base_run, tokenizer, mixture, seed, work)
    write_base(out, base, tokenizer)
    for name in ADAPTERS:
        write_lora(out, name, _adapter(base, name, lora_run, tokenizer, seed, work))
    draft = _whole(DRAFT, draft_run, tokenizer, mixture, seed, work)
    write_draft(out, draft, tokenizer)


def _tokenizer(mixture: Mixture, seed: int, work: Path) -> Tokenizer:
    path = work / "tokenizer.json"
    if not path.exists():
        rng = random.Random(seed)
        samples = (mixture(rng) for _ in range(TOKENIZER_SAMPLES))
        texts = (render(c.messages, c.tools) for c in samples)
        train_tokenizer(texts, BASE.vocab).save(str(path))
    return Tokenizer.from_file(str(path))


def _whole(
    size: ModelSize, run: Run, tokenizer: Tokenizer, mixture: Mixture, seed: int, work: Path
) -> Llama:
    """Trains one model from scratch and rounds it to float16 values."""
    torch.manual_seed(seed)
    model = Llama(size)
    path = work / f"{size.name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        data = batches(mixture, tokenizer, run, seed + 1)
        part = work / f"{size.name}-part.pt"
        train(model, data, optimisers(model, run), run, size.name,
              checkpoint=lambda _: torch.save(model.state_dict(), part))
        round_weights(model)
        torch.save(model.state_dict(), path)
    return model


def _adapter(
    base: Llama, name: str, run: Run, tokenizer: Tokenizer, seed: int, work: Path
) -> Llama:
    """Trains one adapter on a frozen copy of ``base``."""
    torch.manual_seed(seed)
    model = with_lora(base)
    path = work / f"{name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        data = batches(adapter_mixture(name), tokenizer, run, seed + 2)
        train(model, data, lora_optimisers(model, run.adam_rate), run, name)
        round_weights(model)
        torch.save(model.state_dict(), path)
    return model


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Rounds all weights to float16 values, so that every file format holds the same numbers."""
    for weight in model.parameters():
        weight.copy_(weight.half().float())


def arrays(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Torch weights as float32 numpy arrays."""
    return {name: weight.detach().float().numpy() for name, weight in weights.items()}


def write_base(out: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Writes the model: GGUF twice, Hugging Face once."""
    weights = arrays(dict(model.named_parameters()))
    export_gguf.write_model(out / "themis-tiny-f16.gguf", weights, BASE, tokenizer, False)
    export_gguf.write_model(out / "themis-tiny-q8_0.gguf", weights, BASE, tokenizer, True)
    export_hf.write_model(out / "hf", weights, BASE, tokenizer)


def write_draft(out: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Writes the draft model."""
    weights = arrays(dict(model.named_parameters()))
    export_gguf.write_model(out / "themis-tiny-draft-f16.gguf", weights, DRAFT, tokenizer, False)
    export_hf.write_model(out / "draft-hf", weights, DRAFT, tokenizer)


def write_lora(out: Path, name: str, model: Llama) -> None:
    """Writes one adapter in both forms."""
    weights = arrays(lora_weights(model))
    export_gguf.write_adapter(out / f"lora-{name}.gguf", f"themis-tiny-{name}", weights, BASE)
    export_hf.write_adapter(out / f"lora-{name}", weights)
