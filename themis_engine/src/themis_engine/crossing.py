"""The one crossing from the engine thread into asyncio: all events of a step in one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from themis_core.errors import ThemisError
from themis_core.messages import GenerateEvent

T = TypeVar("T")
Item = GenerateEvent | ThemisError


class EventStream:
    """The asyncio end of one request. Everything here runs on the event loop's thread."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, items: list[Item]) -> None:
        """Append items and wake the reader."""
        self._items.extend(items)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> GenerateEvent:
        """The next event. Raises the error that was delivered in its place.

        Only one task may wait here at a time; cancelling it loses nothing.
        """
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._items.popleft()
        if isinstance(item, ThemisError):
            raise item
        return item


class Crossing:
    """Collects what the engine thread has to say, and hands it over once per step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outbox: dict[EventStream, list[Item]] = {}

    def post(self, stream: EventStream, item: Item) -> None:
        """Engine thread: queue an item for the next `flush`."""
        self._outbox.setdefault(stream, []).append(item)

    def flush(self) -> bool:
        """Engine thread: hand everything over. False if the event loop is closed."""
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            return self.call(_deliver, outbox)
        return True

    def call(self, function: Callable[[T], None], argument: T) -> bool:
        """Engine thread: call a function on the event loop's thread. False if it is closed."""
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # What asyncio raises for a closed loop.
            return False
        return True


def _deliver(outbox: dict[EventStream, list[Item]]) -> None:
    for stream, items in outbox.items():
        stream.deliver(items)
