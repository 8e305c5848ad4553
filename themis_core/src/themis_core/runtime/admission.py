"""Step 2, admit: input validators, then the quota. Step 7, settle: the quota hears the usage."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from themis_core.contracts import Quota, Reservation, Validator
from themis_core.messages import GenerateRequest, Usage


class Admission:
    """Entering it admits `request`; leaving it unsettled gives the reservation back.

    A class rather than a generator: a caller who drops the iterator of `generate` makes asyncio
    close every generator under it in any order, and this must survive that.
    """

    def __init__(
        self, request: GenerateRequest, validators: Sequence[Validator], quota: Quota | None
    ) -> None:
        self.request = request
        self._validators = validators
        self._quota = quota
        self._reservation: Reservation | None = None

    async def __aenter__(self) -> Self:
        """Raises `RequestRejected` or `QuotaExceeded`."""
        for validator in self._validators:
            self.request = await validator.check_input(self.request)
        if self._quota is not None:
            self._reservation = await self._quota.reserve(self.request)
        return self

    async def settle(self, usage: Usage) -> None:
        """The request is complete. Later calls do nothing."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            await reservation.settle(usage)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            await reservation.release()
