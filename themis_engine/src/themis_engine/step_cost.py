"""What a step costs: a fixed part, and a part for each position, learned from recent steps."""

from __future__ import annotations

_DECAY = 0.98  # What a step counts, one step later.
_ENOUGH = 8.0


class StepCost:
    """seconds ≈ fixed + slope · positions, by least squares over recent steps."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, positions: int, seconds: float) -> None:
        """A step of so many positions took so long."""
        self._n = self._n * _DECAY + 1
        self._x = self._x * _DECAY + positions
        self._y = self._y * _DECAY + seconds
        self._xx = self._xx * _DECAY + positions * positions
        self._xy = self._xy * _DECAY + positions * seconds

    def of(self, positions: int) -> float | None:
        """Seconds of a step; None while nothing is known."""
        fit = self.fit
        return None if fit is None else fit[0] + fit[1] * positions

    @property
    def slope(self) -> float | None:
        """Seconds for one more position; None while nothing is known."""
        fit = self.fit
        return None if fit is None else fit[1]

    @property
    def fit(self) -> tuple[float, float] | None:
        """The fixed part, and that of a position; None while nothing is known."""
        spread = self._n * self._xx - self._x * self._x
        if self._n < _ENOUGH or spread <= 1e-9 * self._xx * self._n:
            return None  # Too few steps, or all of one size.
        slope = max(0.0, (self._n * self._xy - self._x * self._y) / spread)
        fixed = max(0.0, (self._y - slope * self._x) / self._n)
        return fixed, slope
