"""What both kinds of KV cache offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from themis_onnx.steps import Array


class Cache(Protocol):
    """The past of some sequences, and how a model computes on from there.

    `held` are the lengths by sequence, as the caller may read them. Nothing is checked here. If a
    computation raises `BackendFailed`, no length has changed.
    """

    held: npt.NDArray[np.int64]

    def extend(self, sequence: int, tokens: Array, keep: int) -> Array:
        """Compute the next `tokens` of one sequence; the logits (kept, vocabulary) of the last
        positions, `keep` of them or more, or of one if the graph gives no others."""
        ...

    def decode(self, sequences: Sequence[int], tokens: Array) -> Array:
        """Compute one token of each sequence, all different; logits (n, vocabulary)."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first tokens of `source` the content of the empty `target`."""
        ...

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all from `length` on."""
        ...

    def free(self, sequence: int) -> None:
        """Empty a sequence."""
        ...
