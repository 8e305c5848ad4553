"""Waiting for what a server sends, but not beyond a deadline and not beyond closing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from themis_core.errors import BackendClosed, DeadlineExceeded

T = TypeVar("T")


class Waits:
    """All waits of one backend; `close` ends those that are under way."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._scopes: set[asyncio.Timeout] = set()
        self._closed = False

    def close(self) -> None:
        """Whoever waits, or comes later, gets `BackendClosed`."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(now)
        self._scopes.clear()

    async def until(self, deadline: float | None, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work()`. `deadline` is in the event loop's time.

        Raises `DeadlineExceeded` and `BackendClosed`, having cancelled the work.
        """
        if self._closed:
            raise self._gone()
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    return await work()
                finally:
                    self._scopes.discard(scope)
        except TimeoutError as error:
            if not scope.expired():
                raise
            if self._closed:
                raise self._gone() from error
            message = "The request was not finished within its timeout."
            raise DeadlineExceeded(message, field="timeout", plugin=self._plugin) from error

    def _gone(self) -> BackendClosed:
        return BackendClosed("The backend is not running.", plugin=self._plugin)
