"""The order of work: tokenizer, model, draft model, adapters, files, report."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from . import export_gguf, export_hf, export_onnx
from .chat import render
from .corpus import Mixture
from .corpus.mixture import adapter_mixture
from .data import Batch, batches
from .loop import train
from .lora import lora_optimisers, lora_weights, with_lora
from .model import Llama
from .optimiser import optimisers
from .report import write_report
from .settings import BASE, BASE_RUNS, DRAFT, DRAFT_RUNS, LORA_RUNS, ModelSize, Run
from .tokenizer import train_tokenizer

TOKENIZER_SAMPLES = 40_000


def build(out: Path, seed: int, quick: bool, work: Path, report: Path) -> None:
    """Trains everything from ``seed`` and writes the shipped files into ``out``.

    ``work`` keeps what is trained, so that a run that was stopped goes on after its last stage.
    The evaluation is written to ``report``.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(seed, work)
    base_runs, draft_runs, lora_runs = BASE_RUNS, DRAFT_RUNS, LORA_RUNS
    if quick:
        base_runs, draft_runs = (base_runs[0].shortened(150),), (draft_runs[0].shortened(80),)
        lora_runs = {name: run.shortened(40) for name, run in lora_runs.items()}

    stages = Stages(work)
    base = stages.whole(BASE, base_runs, tokenizer, seed)
    write_base(out, base, tokenizer)
    models = {"base": base}
    for name, run in lora_runs.items():
        models[name] = stages.adapter(base, name, run, tokenizer, seed)
        write_lora(out, name, models[name])
    models["draft"] = stages.whole(DRAFT, draft_runs, tokenizer, seed)
    write_draft(out, models["draft"], tokenizer)
    write_report(report, models, tokenizer, seed, stages.minutes())


def _tokenizer(seed: int, work: Path) -> Tokenizer:
    path = work / "tokenizer.json"
    if not path.exists():
        rng = random.Random(seed)
        mixture = Mixture()
        samples = (mixture(rng) for _ in range(TOKENIZER_SAMPLES))
        texts = (render(c.messages, c.tools) for c in samples)
        train_tokenizer(texts, BASE.vocab).save(str(path))
    return Tokenizer.from_file(str(path))


class Stages:
    """Trains models one by one; what ``work`` already holds is loaded instead."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.times = work / "minutes.json"

    def minutes(self) -> dict[str, float]:
        """How long each stage took."""
        return dict(json.loads(self.times.read_text())) if self.times.exists() else {}

    def whole(
        self,
        size: ModelSize,
        runs: tuple[Run, ...],
        tokenizer: Tokenizer,
        seed: int,
    ) -> Llama:
        """Trains one model from scratch, in phases with fresh optimisers and fresh data."""
        torch.manual_seed(seed)
        model = Llama(size)
        for phase, run in enumerate(runs, start=1):
            data = batches(Mixture(run.polish), tokenizer, run, seed + phase)
            self._fit(model, data, optimisers(model, run), run, f"{size.name}-{phase}")
        round_weights(model)
        return model

    def adapter(self, base: Llama, name: str, run: Run, tokenizer: Tokenizer, seed: int) -> Llama:
        """Trains one adapter on a frozen copy of ``base``."""
        torch.manual_seed(seed)
        model = with_lora(base)
        data = batches(adapter_mixture(name), tokenizer, run, seed + 9)
        self._fit(model, data, lora_optimisers(model, run.adam_rate), run, name)
        round_weights(model)
        return model

    def _fit(
        self,
        model: Llama,
        data: Iterator[Batch],
        optimisers_: list[torch.optim.Optimizer],
        run: Run,
        name: str,
    ) -> None:
        """Trains ``model`` in place, unless the work folder has the result already."""
        path = self.work / f"{name}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path))
            return
        part = self.work / f"{name}-part.pt"
        started = time.monotonic()
        train(model, data, optimisers_, run, name, lambda _: torch.save(model.state_dict(), part))
        torch.save(model.state_dict(), path)
        minutes = self.minutes() | {name: round((time.monotonic() - started) / 60, 1)}
        self.times.write_text(json.dumps(minutes))


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
    export_onnx.write(out / "hf", "shared")


def write_draft(out: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Writes the draft model."""
    weights = arrays(dict(model.named_parameters()))
    export_gguf.write_model(out / "themis-tiny-draft-f16.gguf", weights, DRAFT, tokenizer, False)
    export_hf.write_model(out / "draft-hf", weights, DRAFT, tokenizer)
    export_onnx.write(out / "draft-hf", "shared")


def write_lora(out: Path, name: str, model: Llama) -> None:
    """Writes one adapter in both forms."""
    weights = arrays(lora_weights(model))
    export_gguf.write_adapter(out / f"lora-{name}.gguf", f"themis-tiny-{name}", weights, BASE)
    export_hf.write_adapter(out / f"lora-{name}", weights)
