"""Statistics over the workers of a model: counters never fall, though each worker begins at 0."""

from __future__ import annotations

from typing import Any

import msgspec

from themis_core.messages import BackendStats, Histogram

_GAUGES = {"running", "waiting", "kv_used", "kv_cached", "kv_capacity"}


class Tally:
    """What all workers before did, and what the present one does."""

    def __init__(self) -> None:
        self._before = BackendStats()
        self._now = BackendStats()

    def see(self, stats: BackendStats) -> None:
        """The present worker's statistics."""
        self._now = stats

    def bury(self, failed: int) -> None:
        """The present worker has died, and so many requests have failed with it."""
        kept = dict.fromkeys(_GAUGES, 0)
        total = msgspec.structs.replace(self.total(), **kept)
        self._before = msgspec.structs.replace(total, failed=total.failed + failed)
        self._now = BackendStats()

    def total(self) -> BackendStats:
        """Both together."""
        before, now = self._before, self._now
        values: dict[str, Any] = {}
        for name in BackendStats.__struct_fields__:
            old, new = getattr(before, name), getattr(now, name)
            values[name] = _add(old, new) if isinstance(old, Histogram) else old + new
        return BackendStats(**values)


def _add(old: Histogram, new: Histogram) -> Histogram:
    if not old.bounds or old.bounds != new.bounds:
        return new if new.bounds or not old.bounds else old
    counts = tuple(a + b for a, b in zip(old.counts, new.counts, strict=True))
    return Histogram(bounds=new.bounds, counts=counts, total=old.total + new.total)
