"""Choosing adapters by the query: those whose descriptions are nearest to it.

Similarity is the cosine between vectors of texts; weights are its softmax, sharpened, of which only
what is well above an even share is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from themis_core.messages import AdapterWeight, GenerateRequest

_SHARPNESS = 20.0
_WELL_ABOVE = 1.25  # Times an even share.


def query_of(request: GenerateRequest) -> str:
    """The text that the choice is made by: the last user message, or the prompt. May be empty."""
    for message in reversed(request.messages):
        if message.role == "user":
            return message.content
    return request.prompt if isinstance(request.prompt, str) else ""


def choose_adapters(
    query: npt.NDArray[np.float32], descriptions: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[AdapterWeight, ...]:
    """Adapters with weights that add up to 1; none where none stands out.

    `query` and the vectors of the descriptions have length 1.
    """
    if not descriptions:
        return ()
    names = sorted(descriptions)
    similarity = np.array([float(query @ descriptions[name]) for name in names])
    if len(names) == 1:
        return (AdapterWeight(name=names[0]),) if similarity[0] > 0 else ()
    share = np.exp(_SHARPNESS * (similarity - similarity.max()))
    share /= share.sum()
    kept = [i for i in range(len(names)) if share[i] >= _WELL_ABOVE / len(names)]
    mass = sum(share[i] for i in kept)
    return tuple(AdapterWeight(name=names[i], weight=float(share[i] / mass)) for i in kept)
