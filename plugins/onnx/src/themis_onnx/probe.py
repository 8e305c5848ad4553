"""Trying a model out when it is loaded: are its logits those that its kind of KV cache promises?

Exports differ in what they do with padding, masks and positions, and a graph that understands them
otherwise gives wrong tokens without a word. So before anybody gets an answer, a few random tokens
are computed whole, in pieces, and in company.
"""

from __future__ import annotations

import logging

import numpy as np

from themis_core.errors import ModelLoadFailed
from themis_onnx.cache import Cache
from themis_onnx.steps import Array, as_float32

SEQUENCES = 4  # That the cache must have.
TOKENS = 16  # That each of them must have room for.
_LENGTHS = (13, 5, 1)  # Of the three that are computed together; the fourth is computed alone.
_TOLERANCE = 0.02  # Difference allowed, as a share of the logits' standard deviation.
# Graphs that quantise all activations together see other numbers in other company.
_COARSE = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
_COARSE_TOLERANCE = 0.3

_log = logging.getLogger("themis.onnx")


def batches(cache: Cache, vocabulary: int, kind: str, ops: set[str]) -> bool:
    """True if sequences can be computed together. All are empty afterwards.

    Raises `ModelLoadFailed` if not even a prompt in pieces gives what it gives as a whole.
    """
    chance = np.random.default_rng(0)
    texts = [chance.integers(0, vocabulary, length + 2) for length in _LENGTHS]

    def whole(tokens: Array) -> Array:
        logits: Array = as_float32(cache.extend(3, tokens, 1)[-1], kind).copy()
        cache.free(3)
        return logits

    want = [[whole(text[: len(text) - 1]), whole(text)] for text in texts]
    tolerance = _COARSE_TOLERANCE if _COARSE & ops else _TOLERANCE
    for i, text in enumerate(texts):
        cache.extend(i, text[: len(text) - 4] if len(text) > 4 else text[:1], 1)
        cache.extend(i, text[int(cache.held[i]) : len(text) - 2], 1) if len(text) > 4 else None
        alone = as_float32(cache.decode([i], text[-2:-1]), kind)[0].copy()
        if not _alike(alone, want[i][0], tolerance):
            raise ModelLoadFailed(
                "The model gives other logits when a text is computed in pieces than when it is "
                "computed at once: its KV cache works in a way that is unknown here.",
                remedy="Export the model anew, with optimum or onnxruntime-genai.",
                plugin="onnx",
            )
        cache.truncate(i, len(text) - 2)
    good = True
    for step, order in enumerate(([0, 1, 2], [2, 0, 1])):
        tokens = np.array([texts[i][len(texts[i]) - 2 + step] for i in order])
        try:
            together = as_float32(cache.decode(order, tokens), kind)
        except Exception as error:  # noqa: BLE001 - whatever it is, it cannot compute them together
            _log.info("This model refuses batches: %s", error)
            good = False
            break
        good = good and all(
            _alike(row, want[i][step], _TOLERANCE) for row, i in zip(together, order, strict=True)
        )
    for i in range(SEQUENCES):
        cache.free(i)
    if not good:
        _log.warning(
            "This model gives other logits in a batch than alone: sequences are computed one by "
            "one, so more of them are not faster."
        )
    return good


def _alike(found: Array, want: Array, tolerance: float) -> bool:
    spread = max(float(want.std()), 1e-6)
    difference = float(np.sqrt(np.mean((found - want) ** 2)))
    return difference <= tolerance * spread  # False where anything is not a number.
