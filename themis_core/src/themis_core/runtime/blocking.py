"""The same runtime without asyncio: a thin layer over an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

from themis_core.errors import BackendClosed
from themis_core.messages import BackendStats, Completion, GenerateEvent, GenerateRequest
from themis_core.runtime.models import ModelStatus
from themis_core.runtime.runtime import Runtime

T = TypeVar("T")


class BlockingRuntime:
    """Use as a context manager; its methods may be called from several threads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="themis-blocking")

    def generate(self, request: GenerateRequest) -> Generator[GenerateEvent, None, None]:
        """The events of one request. Closing the iterator cancels the generation."""
        events = self._runtime.generate(request)
        try:
            while True:
                try:
                    yield self._call(anext(events))
                except StopAsyncIteration:
                    return
        finally:
            if self._loop.is_running():  # Stopping the runtime has closed it already.
                self._call(events.aclose())

    def complete(self, request: GenerateRequest) -> Completion:
        """One gathered answer."""
        return self._call(self._runtime.complete(request))

    def models(self) -> tuple[ModelStatus, ...]:
        """All configured models."""
        return self._runtime.models()

    def stats(self) -> dict[str, BackendStats]:
        """The statistics of the loaded models."""
        return self._call(self._runtime.stats())

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._runtime.start())
        except BaseException:  # Failed or interrupted: the thread must not stay.
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._call(self._loop.shutdown_asyncgens())  # Iterators that somebody abandoned.
            self._call(self._runtime.aclose())
        finally:
            self._stop()

    def _call(self, awaitable: Coroutine[Any, Any, T]) -> T:
        if not self._loop.is_running():
            awaitable.close()
            raise BackendClosed("The runtime is not open.", remedy="Enter it with `with` first.")
        future = asyncio.run_coroutine_threadsafe(awaitable, self._loop)
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt must not leave the work running.
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
