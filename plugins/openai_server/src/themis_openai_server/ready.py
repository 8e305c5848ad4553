"""Taking from an asynchronous generator all that is ready, and waiting only when nothing is."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MAX_BATCH = 64


class Ready(Generic[T]):
    """Reads a generator in batches: one batch is one write to the client.

    `async for` cannot tell whether the next event is ready, and a second task with a queue between
    would cost a task switch for each event. So each step of the generator is begun here by hand;
    if it gives an event at once, that joins the batch, and if it must wait, the batch is handed out
    first and the begun step is awaited in the next call.

    Nothing is read past an event of class `last`, so that closing never disturbs a normal end.
    """

    def __init__(self, events: AsyncGenerator[T, None], last: type | None = None) -> None:
        self._events = events
        self._last = last
        self._begun: tuple[Coroutine[Any, Any, T], Any] | None = None
        self._error: Exception | None = None
        self._ended = False

    async def batch(self) -> list[T]:
        """At least one event, and all that are ready behind it; empty at the end.

        Raises what the generator raises, after the events before it have been handed out.
        """
        if self._error is not None:
            raise self._error
        batch: list[T] = []
        while not self._ended and len(batch) < MAX_BATCH:
            try:
                if self._begun is None:
                    self._begin(batch)
                elif batch:
                    return batch
                else:
                    batch.append(await self._finish())
                if self._last is not None and batch and isinstance(batch[-1], self._last):
                    self._ended = True
            except StopAsyncIteration:
                self._ended = True
            except Exception as error:
                self._ended = True
                if not batch:
                    raise
                self._error = error
        if len(batch) == MAX_BATCH:
            # A generator that never waits must not starve the other requests.
            await asyncio.sleep(0)
        return batch

    async def aclose(self) -> None:
        """Close the generator, wherever it is. Returns when its cleanup is done."""
        if self._begun is not None:
            step, _ = self._begun
            self._begun = None
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await _drive(step, partial(step.throw, asyncio.CancelledError()))
        await self._events.aclose()

    def _begin(self, batch: list[T]) -> None:
        step: Coroutine[Any, Any, T] = self._events.__anext__()
        try:
            self._begun = step, step.send(None)
        except StopIteration as stop:
            batch.append(stop.value)

    async def _finish(self) -> T:
        assert self._begun is not None
        step, waited_for = self._begun
        try:
            return await _drive(step, lambda: waited_for)
        finally:
            self._begun = None


@types.coroutine
def _drive(step: Coroutine[Any, Any, T], go_on: Callable[[], Any]) -> Generator[Any, Any, T]:
    """Run a begun step to its end, showing the event loop each thing that it waits for."""
    while True:
        try:
            waited_for = go_on()
        except StopIteration as stop:
            value: T = stop.value
            return value
        try:
            answer = yield waited_for
        except BaseException as error:  # noqa: BLE001 - cancellation, above all, goes to the step.
            go_on = partial(step.throw, error)
        else:
            go_on = partial(step.send, answer)
