"""Which request kills the workers? Those in flight at a death are suspects, until they get further.

At first all are carried on together: most deaths are nobody's fault. Who is in flight at a second
death, and has got no further than at the first, runs alone until it does. Whose workers die twice
while it is alone, and gets no further meanwhile, is guilty. So a request among others costs four
workers before it is refused, and one by itself two. An innocent one is refused only if its workers
are killed from outside twice while it happens to be alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Suspect:
    """A request as seen by the deaths of its workers."""

    def __init__(self) -> None:
        self.strikes = 0
        self._alone = 0
        self.progress = 0
        self._at_death = -1

    @property
    def cleared(self) -> bool:
        """True if it got further than at the last death."""
        return self.progress > self._at_death

    @property
    def guilty(self) -> bool:
        """True if it has killed two workers, without doubt."""
        return self._alone >= 2

    def struck(self, *, alone: bool) -> None:
        """A worker died under it, in which nothing else ran if `alone`."""
        if self.cleared:
            self.strikes = self._alone = 0
        self.strikes += 1
        self._alone += alone
        self._at_death = self.progress


class Gate:
    """Lets requests through: many at once, or one that must be alone. Used on one event loop."""

    def __init__(self) -> None:
        self._inside: set[Suspect] = set()
        self._alone: Suspect | None = None
        self._waiting_alone = 0
        self._waiters: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def enter(self, suspect: Suspect) -> AsyncIterator[None]:
        """Wait until the request may run; it runs within."""
        if suspect.strikes >= 2 and not suspect.cleared:
            self._waiting_alone += 1
            try:
                await self._until(lambda: not self._inside)
            finally:
                self._waiting_alone -= 1
                self._wake()
            self._alone = suspect
        else:
            await self._until(lambda: self._alone is None and not self._waiting_alone)
        self._inside.add(suspect)
        try:
            yield
        finally:
            self._inside.discard(suspect)
            self.clear(suspect)
            self._wake()

    def clear(self, suspect: Suspect) -> None:
        """It has got further, or has left: others may run beside it."""
        if self._alone is suspect:
            self._alone = None
            self._wake()

    async def _until(self, free: Callable[[], bool]) -> None:
        while not free():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
