"""The one crossing from the engine thread into asyncio: all that a step brought, in one call.

Only tokens cross. What they mean as text is worked out on the other side (`output.py`), while the
engine thread already computes the next step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from themis_core.errors import ThemisError

if TYPE_CHECKING:
    from themis_engine.sampler import Sampled

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Begun:
    """The request runs; so many of its prompt's tokens were there already."""

    cached: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice has its last token: at its limit, or because of the token itself.

    A `silent` one is no part of the text. `matched` is the stop token id that it was.
    """

    at_limit: bool = False
    silent: bool = False
    matched: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of choice `index`, and whether they are its last."""

    index: int
    sampled: list[Sampled]
    ended: Ended | None = None


Item = Begun | Tokens | ThemisError


class EventStream:
    """The asyncio end of one request. Everything here runs on the event loop's thread."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, items: list[Item]) -> None:
        """Append items and wake the reader."""
        self._items += items
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Item]:
        """All items that have come since, at least one.

        Only one task may wait here at a time; cancelling it loses nothing.
        """
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items


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
