"""An event loop in a thread of its own, where other threads have their coroutines run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

from themis_core.errors import BackendClosed

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for any thread from its creation until `close`, which ends all of them.

    Nobody waits for ever: a call is either refused, or begun before the closing is begun, which
    then cancels it and waits for its end.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()  # Touched on the loop's thread only.
        # At its end the runner ends what is left: tasks, generators, the executor's threads.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._main, name=name)
        self._thread.start()

    @property
    def inside(self) -> bool:
        """True on the loop's own thread."""
        return threading.current_thread() is self._thread

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for its result. An interrupt (Ctrl-C) cancels it first.

        Raises `BackendClosed` if the loop is closed before the end, and `RuntimeError` on the
        loop's own thread.
        """
        if self.inside:
            coroutine.close()
            raise RuntimeError("a blocking call on the event loop's own thread would never end")
        call = _Call(coroutine)
        try:
            # The lock is held for a check and an append; no coroutine runs meanwhile.
            with self._lock:
                if self._closing:
                    call.refuse()
                else:
                    self._loop.call_soon_threadsafe(self._begin, call)
            return call.result.result()
        except BaseException:  # KeyboardInterrupt must not leave the work running.
            self._abandon(call)
            raise

    def post(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine some time, without waiting; not at all if the loop is being closed.

        Takes no lock, so that the garbage collector may call it anywhere.
        """
        if not self._closing:
            with suppress(RuntimeError):  # Closed in this very moment.
                self._loop.call_soon_threadsafe(lambda: self._begin(_Call(make())))

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Take no more calls, end those under way with `BackendClosed`, then run `last`.

        Raises what `last` raises, after the thread has ended. Called once.
        """
        with self._lock:
            self._closing = True
        final = _Call(self._finish(last))
        try:
            self._loop.call_soon_threadsafe(self._begin, final)
            final.result.result()
        except BaseException:
            self._abandon(final)
            raise
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _main(self) -> None:
        with self._runner:
            self._loop.run_forever()

    def _begin(self, call: _Call[Any]) -> None:
        task = self._loop.create_task(call.coroutine)
        call.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(call.end)

    async def _finish(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            if others := self._tasks - {asyncio.current_task()}:
                for task in others:
                    task.cancel()
                await asyncio.wait(others)
        finally:  # Also when whoever closes is interrupted.
            await last()

    def _abandon(self, call: _Call[Any]) -> None:
        """Have a call end that is interrupted, wherever it was; return when it has cleaned up."""
        if call.result.done():
            return
        try:
            self._loop.call_soon_threadsafe(call.cancel)
        except RuntimeError:  # The loop is closed, so that the call never began.
            call.refuse()
        call.result.exception()


class _Call(Generic[T]):
    """A coroutine, the task that runs it, and the result for the thread that waits."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.coroutine = coroutine
        self.task: asyncio.Task[T] | None = None
        self.result: Future[T] = Future()

    def cancel(self) -> None:
        # In the order of asking: without a task now, it was never asked for.
        if self.task is not None:
            self.task.cancel()
        else:
            self.refuse()

    def refuse(self) -> None:
        self.coroutine.close()
        self.result.set_exception(_closed())

    def end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.result.set_exception(_closed())
        elif error := task.exception():
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())


def _closed() -> BackendClosed:
    return BackendClosed("The runtime is closed.", remedy="Use it inside its `with` block.")
