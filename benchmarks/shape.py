"""The shape of the models that are measured: a llama of 124 M parameters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HIDDEN = 768
LAYERS = 12
HEADS = 12
HEAD = HIDDEN // HEADS
FFN = 2048
CONTEXT = 2048
ROPE_BASE = 10_000.0

Matrix = npt.NDArray[np.float32]

# The matrices of a layer: rows (outputs) and columns (inputs), in the order of the file.
LAYER: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (HIDDEN, HIDDEN)),
    "ffn_gate": (FFN, HIDDEN),
    "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}


def random_matrix(chance: np.random.Generator, rows: int, columns: int) -> Matrix:
    """Scaled so that what flows through keeps its size, and attention is neither flat nor stuck."""
    return chance.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
