"""Step 4, lease: models are loaded when first needed, once, and shared by all requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from themis_core.contracts import Backend
from themis_core.errors import BackendClosed, ThemisError
from themis_core.messages import BackendStats, ModelInfo

_log = logging.getLogger("themis.runtime")

State = Literal["unloaded", "loading", "ready", "failed"]


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A configured model at this moment. `error` is why the last loading failed."""

    name: str
    backend: str
    state: State
    aliases: tuple[str, ...] = ()
    info: ModelInfo | None = None
    error: str | None = None


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """How to make a model's backend, not yet started."""

    backend: str
    make: Callable[[], Backend]
    aliases: tuple[str, ...] = ()
    preload: bool = False


Listener = Callable[[str, str, dict[str, Any]], None]


class ModelPool:
    """The models of a runtime. `on_event(hook, model, arguments)` hears of starts and stops."""

    def __init__(self, sources: Mapping[str, ModelSource], on_event: Listener) -> None:
        self._models = {name: _Model(name, source, on_event) for name, source in sources.items()}
        self._closed = False

    async def start(self) -> None:
        """Load what is to be preloaded. Raises the first error, after all have ended."""
        preloaded = [self.lease(n) for n, m in self._models.items() if m.source.preload]
        results = await asyncio.gather(*preloaded, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def lease(self, name: str) -> Backend:
        """The started backend of a model, loading it first if need be."""
        if self._closed:
            raise BackendClosed("The runtime is closed.")
        return await self._models[name].get()

    def status(self) -> tuple[ModelStatus, ...]:
        """All models, loaded or not."""
        return tuple(model.status() for model in self._models.values())

    async def stats(self) -> dict[str, BackendStats]:
        """The statistics of the loaded models."""
        ready = {n: m.backend for n, m in self._models.items() if m.backend is not None}
        return {name: await backend.stats() for name, backend in ready.items()}

    async def aclose(self) -> None:
        """Close all models. Every one is closed, even if another fails to."""
        self._closed = True
        closing = [model.aclose() for model in self._models.values()]
        for error in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(error, BaseException):
                _log.error("A model could not be closed: %r.", error)


class _Model:
    def __init__(self, name: str, source: ModelSource, on_event: Listener) -> None:
        self.name = name
        self.source = source
        self.backend: Backend | None = None
        self._on_event = on_event
        self._loading: asyncio.Task[Backend] | None = None
        self._error: str | None = None

    async def get(self) -> Backend:
        if self.backend is not None:
            return self.backend
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name=f"themis load {self.name}")
        # Shielded: a caller who leaves must not stop a load that others wait for.
        return await asyncio.shield(self._loading)

    async def _load(self) -> Backend:
        backend: Backend | None = None
        try:
            backend = self.source.make()
            await backend.start()
        except BaseException as error:
            self._error = str(error) if isinstance(error, ThemisError) else repr(error)
            if backend is not None:
                await backend.aclose()
            raise
        else:
            self._error = None
            self.backend = backend
        finally:
            self._loading = None
        self._on_event("themis_model_started", self.name, {"info": backend.info})
        return backend

    def status(self) -> ModelStatus:
        if self.backend is not None:
            state: State = "ready"
        elif self._loading is not None:
            state = "loading"
        else:
            state = "failed" if self._error else "unloaded"
        return ModelStatus(
            name=self.name,
            backend=self.source.backend,
            state=state,
            aliases=self.source.aliases,
            info=self.backend.info if self.backend else None,
            error=self._error,
        )

    async def aclose(self) -> None:
        if self._loading is not None:
            loading = self._loading
            loading.cancel()
            await asyncio.wait([loading])
        backend, self.backend = self.backend, None
        if backend is not None:
            await backend.aclose()
            self._on_event("themis_model_stopped", self.name, {})
