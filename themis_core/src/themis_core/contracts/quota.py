"""A quota: who may use how much."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from themis_core.messages import GenerateRequest, Usage


@runtime_checkable
class Reservation(Protocol):
    """What one request has been granted. Exactly one of the two methods is called, once.

    A call that takes longer than the quota's `Budget` is cancelled, and nobody calls again:
    cancelled, the reservation has ended nonetheless, and holds nothing.
    """

    async def settle(self, usage: Usage) -> None:
        """Replace the estimate by what was really used."""
        ...

    async def release(self) -> None:
        """Give everything back: the request failed or was cancelled."""
        ...


class Quota(Protocol):
    """Admits requests by account."""

    async def reserve(self, request: GenerateRequest) -> Reservation:
        """Reserve capacity for a request. Raises `QuotaExceeded`. If cancelled, nothing is held.

        It is cancelled when the caller leaves, when the request's time is up, and when it takes
        longer than the quota's `Budget`.
        """
        ...

    async def aclose(self) -> None:
        """Release everything. Closing twice is fine."""
        ...
