"""Step 2, admit: input validators, then the quota. Step 7, settle: the quota hears the usage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from themis_core.contracts import Quota, Reservation, Validator
from themis_core.messages import GenerateRequest, Usage
from themis_core.runtime.deadline import Deadline

Route = Callable[[GenerateRequest], GenerateRequest]


class Admission:
    """Entering it admits `request`; leaving it unsettled gives the reservation back.

    `route` puts the configured name of the model into a request; it is asked once more behind the
    validators, which may have chosen another model.

    A class rather than a generator: a caller who drops the iterator of `generate` makes asyncio
    close every generator under it in any order, and this must survive that.
    """

    def __init__(
        self,
        request: GenerateRequest,
        route: Route,
        validators: Sequence[Validator],
        quota: Quota | None,
        deadline: Deadline,
    ) -> None:
        self.request = request
        self._route = route
        self._validators = validators
        self._quota = quota
        self._deadline = deadline
        self._reservation: Reservation | None = None

    async def __aenter__(self) -> Self:
        """Raises `RequestRejected`, `ModelNotFound`, `QuotaExceeded` or `DeadlineExceeded`.

        The runtime's validators and quota are guarded (`guards.py`): they raise `HookTimeout` too.
        """
        for validator in self._validators:
            checked = validator.check_input(self.request)
            self.request = await self._deadline.bound(self.request, checked)
        self.request = self._route(self.request)
        if self._quota is not None:
            reserved = self._quota.reserve(self.request)
            self._reservation = await self._deadline.bound(self.request, reserved)
        # Nothing waits from here on: a reservation that is made is in the hands of `__aexit__`.
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
