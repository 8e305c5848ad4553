"""The sizes of the models and the lengths of their training runs, in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelSize:
    """Shape of one Llama model. Rows are multiples of 256 where llama.cpp shall quantise them."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int = 1920
    context: int = 2048
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5

    def parameter_count(self) -> int:
        """Number of weights; the output layer shares the embedding and counts once."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        per_layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.vocab * self.hidden + self.layers * per_layer + self.hidden


@dataclass(frozen=True)
class Run:
    """One phase of training. A step reads ``rows * row_length`` tokens.

    The learning rate falls along a cosine of ``schedule`` steps (``steps`` if 0), so a phase that
    stops before its schedule does ends at a high rate, for a next phase to start from.

    The first ``copying_steps`` steps mostly repeat random words: a model that has learnt to copy
    by then reads contexts later; without them it had not after three times as many steps.
    """

    steps: int
    rows: int = 16
    row_length: int = 256
    long_every: int = 8
    long_length: int = 1024
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    warmup: int = 60
    copying_steps: int = 320
    floor: float = 0.02
    prompt_weight: float = 0.0
    schedule: int = 0
    polish: bool = False

    def shortened(self, steps: int) -> Run:
        """The same run with fewer steps, for ``--quick``."""
        return replace(
            self, steps=steps, schedule=0, warmup=min(self.warmup, steps // 5), copying_steps=0
        )


BASE = ModelSize("themis-tiny", hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffn=256)
DRAFT = ModelSize(
    "themis-tiny-draft", hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn=128
)

# The long phase at a high rate; one in which the rate falls; one that polishes facts and sums.
BASE_RUNS = (
    Run(steps=1601, schedule=3600),
    Run(steps=1000, muon_rate=0.012, adam_rate=0.0024, warmup=20, copying_steps=0),
    Run(steps=600, muon_rate=0.008, adam_rate=0.0016, warmup=20, copying_steps=0, polish=True),
)
DRAFT_RUNS = (
    Run(steps=1500),
    Run(steps=1600, muon_rate=0.016, adam_rate=0.003, copying_steps=0, polish=True),
)
# Short answers as JSON are harder to learn than the language: they cut the sentence to one word.
LORA_RUNS = {
    "german": Run(steps=320, rows=8, adam_rate=0.003, warmup=20, copying_steps=0, long_every=0),
    "json": Run(steps=1000, rows=8, adam_rate=0.005, warmup=40, copying_steps=0, long_every=0),
}

LORA_RANK = 8
LORA_ALPHA = 16.0
LORA_TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
