"""How many prompt tokens a step computes: as many as keep every step short.

Who arrives waits for the step that is being computed, and who decodes gets no token before its end.
What takes how long depends on model and machine, so it is learned from the steps themselves.
"""

from __future__ import annotations

from themis_engine.step_cost import StepCost

# Readers of a stream hardly notice it, and it is long enough for an efficient batch.
_STEP_SECONDS = 0.1
# Below it, the weights are read too often for the tokens that they are read for.
_LEAST = 64
# While nothing is known.
_UNKNOWN = 128


class PrefillPace:
    """The bound on the prompt tokens of a step: `fixed`, or found for steps of about 100 ms."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._cost = StepCost()

    @property
    def tokens(self) -> int:
        """Most prompt tokens of the next step."""
        if self._fixed is not None:
            return self._fixed
        known = self._cost.fit
        if known is None:
            return _UNKNOWN
        fixed, slope = known
        bound = int((_STEP_SECONDS - fixed) / max(slope, 1e-9))
        # In pieces that matrix kernels like.
        return max(_LEAST, bound - bound % 32)

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._cost.observe(tokens, seconds)
