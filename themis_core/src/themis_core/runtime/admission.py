"""Step 2, admit: input validators, then the quota. Step 7, settle: the quota hears the usage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from themis_core.contracts import Quota, Reservation, Validator
from themis_core.messages import GenerateRequest, Usage


class Admitted:
    """A request that may run, and what has been reserved for it."""

    def __init__(self, request: GenerateRequest, reservation: Reservation | None) -> None:
        self.request = request
        self._reservation = reservation

    async def settle(self, usage: Usage) -> None:
        """The request is complete. Later calls do nothing."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            await reservation.settle(usage)

    async def release(self) -> None:
        """The request failed or was cancelled; does nothing after `settle`."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            await reservation.release()


@asynccontextmanager
async def admit(
    request: GenerateRequest, validators: Sequence[Validator], quota: Quota | None
) -> AsyncIterator[Admitted]:
    """Raises `RequestRejected` or `QuotaExceeded`. Leaving it unsettled releases the quota."""
    for validator in validators:
        request = await validator.check_input(request)
    admitted = Admitted(request, await quota.reserve(request) if quota else None)
    try:
        yield admitted
    finally:
        await admitted.release()
