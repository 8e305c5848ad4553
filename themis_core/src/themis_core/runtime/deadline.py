"""A request's `timeout`, which runs from its acceptance to its last event."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

import msgspec

from themis_core.errors import DeadlineExceeded
from themis_core.messages import GenerateRequest

T = TypeVar("T")


class Deadline:
    """The clock of one request, started by creating it.

    The request is an argument, since a validator may change its `timeout`.
    """

    def __init__(self) -> None:
        self._accepted = time.monotonic()

    async def bound(self, request: GenerateRequest, work: Awaitable[T]) -> T:
        """Await `work`; raise `DeadlineExceeded`, having cancelled it, when the time is up."""
        if request.timeout is None:
            return await work
        try:
            async with asyncio.timeout(self._remaining(request.timeout)) as scope:
                return await work
        except TimeoutError:
            if not scope.expired():
                raise  # Of the work itself.
            raise _expired(request) from None

    def pass_on(self, request: GenerateRequest) -> GenerateRequest:
        """The request with the time that is left for the backend, which bounds the generation.

        Raises `DeadlineExceeded` if that is none.
        """
        if request.timeout is None:
            return request
        remaining = self._remaining(request.timeout)
        if remaining <= 0:
            raise _expired(request)
        return msgspec.structs.replace(request, timeout=remaining)

    def _remaining(self, timeout: float) -> float:
        return timeout - (time.monotonic() - self._accepted)


def _expired(request: GenerateRequest) -> DeadlineExceeded:
    message = f"The request was not finished within {request.timeout} seconds."
    return DeadlineExceeded(message, field="timeout")
