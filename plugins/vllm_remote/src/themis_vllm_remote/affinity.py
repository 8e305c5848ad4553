"""Which server has a prompt's beginning in its prefix cache already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

_BLOCK = 128  # vLLM caches whole blocks; on a CPU they have so many tokens.
_MOST = 65_536


class Affinity:
    """Remembers where prompts went, block by block. What was not used for long is forgotten."""

    def __init__(self) -> None:
        self._places: OrderedDict[int, int] = OrderedDict()

    def note(self, head: Sequence[int], place: int) -> None:
        """A prompt that begins so went to this server."""
        for key in _keys(head):
            self._places[key] = place
            self._places.move_to_end(key)
        while len(self._places) > _MOST:
            self._places.popitem(last=False)

    def find(self, head: Sequence[int]) -> int | None:
        """The server that has the longest beginning of this prompt; None if none is known."""
        found = None
        for key in _keys(head):
            place = self._places.get(key)
            if place is None:
                break
            found = place
        return found


def _keys(head: Sequence[int]) -> Iterator[int]:
    """A number for each whole block, which depends on all before it."""
    key = 0
    for start in range(0, len(head) - _BLOCK + 1, _BLOCK):
        key = hash((key, tuple(head[start : start + _BLOCK])))
        yield key
