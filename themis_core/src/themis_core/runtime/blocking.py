"""The same runtime without asyncio: a thin layer over an event loop in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from themis_core.config import Config
from themis_core.errors import BackendClosed
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    Completion,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)
from themis_core.runtime.closing import close_in_order
from themis_core.runtime.hooks import HookStats
from themis_core.runtime.loop_thread import LoopThread
from themis_core.runtime.models import ModelStatus
from themis_core.runtime.reload import ReloadReport
from themis_core.runtime.runtime import Runtime

T = TypeVar("T")
Stream = AsyncGenerator[GenerateEvent, None]


class BlockingRuntime:
    """Use as a context manager; its methods may be called from several threads.

    Leaving the `with` block ends what other threads have under way with `BackendClosed`. Each
    method does and raises what the method of that name of `Runtime` does.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._thread: LoopThread | None = None
        self._streams = _Streams()

    def generate(self, request: GenerateRequest) -> EventIterator:
        """The events of one request. Closing the iterator cancels the generation."""
        return EventIterator(self._opened(), self._streams, self._runtime.generate(request))

    def complete(self, request: GenerateRequest) -> Completion:
        """One gathered answer."""
        return self._call(self._runtime.complete(request))

    def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector for each input."""
        return self._call(self._runtime.embed(request))

    def tokenize(self, prompt: str | tuple[ChatMessage, ...], model: str = "") -> tuple[int, ...]:
        """Token ids of a prompt or of messages."""
        return self._call(self._runtime.tokenize(prompt, model))

    def load_adapter(self, name: str, path: str, *, model: str = "", description: str = "") -> None:
        """Make a LoRA adapter usable."""
        loading = self._runtime.load_adapter(name, path, model=model, description=description)
        self._call(loading)

    def unload_adapter(self, name: str, *, model: str = "") -> None:
        """Forget an adapter, once those who use it have finished."""
        self._call(self._runtime.unload_adapter(name, model=model))

    def adapters(self, model: str = "") -> tuple[AdapterWeight, ...]:
        """The loaded adapters."""
        return self._call(self._runtime.adapters(model))

    def model_info(self, model: str = "") -> ModelInfo:
        """Facts about a model."""
        return self._call(self._runtime.model_info(model))

    def reload(self, config: str | Path | Config | None = None) -> ReloadReport:
        """Put another configuration in force, or leave all as it was and raise."""
        return self._call(self._runtime.reload(config))

    @property
    def default_model(self) -> str:
        """The model that serves requests without a name; empty if there is none."""
        return self._runtime.default_model

    def models(self) -> tuple[ModelStatus, ...]:
        """All configured models."""
        return self._runtime.models()

    def stats(self) -> dict[str, BackendStats]:
        """The statistics of the loaded models."""
        return self._call(self._runtime.stats())

    def hook_stats(self) -> tuple[HookStats, ...]:
        """The calls of validators and quota."""
        return self._runtime.hook_stats()

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("a runtime is entered only once")
        self._thread = LoopThread("themis-blocking")
        try:
            self._thread.call(self._runtime.start())
        except BaseException:  # Failed or interrupted: the thread must not stay.
            self._thread.close(self._close)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened().close(self._close)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            thread = self._opened()
        except BackendClosed:
            coroutine.close()
            raise
        return thread.call(coroutine)

    def _opened(self) -> LoopThread:
        if self._thread is None:
            raise BackendClosed("The runtime is not open.", remedy="Enter it with `with` first.")
        return self._thread

    async def _close(self) -> None:
        await close_in_order(
            [("the open iterators", self._streams.aclose), ("the runtime", self._runtime.aclose)]
        )


class _Streams:
    """The generators that have been begun and not ended. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._begun: set[Stream] = set()

    async def step(self, stream: Stream) -> GenerateEvent:
        """Its next event. Raises `StopAsyncIteration` at the end."""
        self._begun.add(stream)
        try:
            return await anext(stream)
        except BaseException:  # Whatever it is, the generator is over.
            self._begun.discard(stream)
            raise

    async def end(self, stream: Stream) -> None:
        """Close one that is not being stepped."""
        self._begun.discard(stream)
        await stream.aclose()

    async def aclose(self) -> None:
        """Close those that are still open."""
        while self._begun:
            await self._begun.pop().aclose()


class EventIterator(Iterator[GenerateEvent]):
    """The events of one request, each one waited for.

    Closing it, or leaving it as a context manager, cancels the generation. One that is dropped
    is closed by the event loop, later: the thread that the garbage collector happens to run in
    may be the loop's own, or hold locks that the loop needs, and must not wait.
    """

    def __init__(self, thread: LoopThread, streams: _Streams, stream: Stream) -> None:
        self._thread = thread
        self._streams = streams
        self._stream = stream
        self._ended = False

    def __next__(self) -> GenerateEvent:
        if self._ended:
            raise StopIteration
        try:
            return self._thread.call(self._streams.step(self._stream))
        except StopAsyncIteration:
            self._ended = True
            raise StopIteration from None
        except BaseException:
            # An interrupt can come when the event was there already, so that this is needed.
            self.close()
            raise

    def close(self) -> None:
        """Cancel the generation and wait for its end; on the event loop's thread only cancel it.

        Twice, or after the runtime was closed, is fine.
        """
        if self._ended:
            return
        self._ended = True
        if self._thread.inside:
            self._thread.post(partial(self._streams.end, self._stream))
            return
        # The runtime closes those that are open when it is closed itself.
        with suppress(BackendClosed):
            self._thread.call(self._streams.end(self._stream))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended:
            self._thread.post(partial(self._streams.end, self._stream))
