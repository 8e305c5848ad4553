"""`VirtualClock`: time that passes when a test says so."""

from __future__ import annotations


class VirtualClock:
    """Call it for the seconds that have passed, as one calls `time.monotonic`."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def __call__(self) -> float:
        """The seconds now."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises `ValueError` for less than 0: a monotonic clock never goes back."""
        if seconds < 0:
            raise ValueError(f"seconds is {seconds!r}, but time goes forward only")
        self._now += seconds
