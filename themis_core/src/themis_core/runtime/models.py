"""Step 4, lease: models are loaded when first needed, once, and shared by all requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from themis_core.contracts import Backend
from themis_core.errors import BackendClosed, BackendFailed, ModelLoadFailed, ThemisError
from themis_core.messages import BackendStats, ModelInfo
from themis_core.runtime.closing import close_at_once
from themis_core.worker import IsolatedBackend, WorkerStatus

_log = logging.getLogger("themis.runtime")

State = Literal["unloaded", "loading", "ready", "failed"]


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A configured model at this moment.

    `error` is why the last loading failed, or why the model failed after it. `worker` is there for
    models with a process of their own: its state, its restarts and how it ended lately.
    """

    name: str
    backend: str
    state: State
    aliases: tuple[str, ...] = ()
    info: ModelInfo | None = None
    error: str | None = None
    worker: WorkerStatus | None = None


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """How to make a model's backend, not yet started. Sources with equal `key` make equal ones."""

    backend: str
    make: Callable[[], Backend]
    aliases: tuple[str, ...] = ()
    preload: bool = False
    key: object = None


Listener = Callable[[str, str, dict[str, Any]], None]


class ModelPool:
    """The models of a runtime. `on_event(hook, model, arguments)` hears of starts and stops.

    A backend whose `info` raises has failed for good: it is closed, its model counts as failed,
    and the next request loads the model afresh. Nothing is loaded but for a request, so a model
    that fails each time costs each of its requests one loading, and does not load in a loop.
    Models of the pool `before` whose sources have the same key are shared with it.
    """

    def __init__(
        self,
        sources: Mapping[str, ModelSource],
        on_event: Listener,
        before: ModelPool | None = None,
    ) -> None:
        self._sources = sources
        self._models = {name: _Model(name, source, on_event) for name, source in sources.items()}
        for name, model in {} if before is None else before._models.items():
            key = model.source.key
            if name in sources and key is not None and key == sources[name].key:
                self._models[name] = model

    def members(self) -> tuple[_Model, ...]:
        """The models: each has a `name`, and is closed by `aclose`."""
        return tuple(self._models.values())

    def adopt(self) -> None:
        """This pool is the one in force: shared models have its aliases now."""
        for name, model in self._models.items():
            model.source = self._sources[name]

    async def start(self) -> None:
        """Load what is to be preloaded. Raises the first error, after all have ended."""
        preloaded = [self.lease(n) for n, source in self._sources.items() if source.preload]
        results = await asyncio.gather(*preloaded, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def lease(self, name: str) -> Backend:
        """The started backend of a model, loading it first if need be.

        Raises what loading raises, and `BackendClosed` if the pool is closed or is being closed.
        """
        return await self._models[name].get()

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """Around the use of a leased backend: if it fails there, see whether that is for good."""
        try:
            yield
        except (BackendFailed, BackendClosed):
            self._models[name].examine()
            raise

    def status(self) -> tuple[ModelStatus, ...]:
        """All models, loaded or not."""
        return tuple(model.status() for model in self._models.values())

    async def stats(self) -> dict[str, BackendStats]:
        """The statistics of the models that are ready."""
        found: dict[str, BackendStats] = {}
        for name, model in self._models.items():
            if (backend := model.ready) is not None:
                found[name] = await backend.stats()
        return found

    async def aclose(self) -> None:
        """Close all models. Every one is closed, even if another fails to; then that is raised."""
        await close_at_once([(f"model {m.name!r}", m.aclose) for m in self._models.values()])


class _Model:
    def __init__(self, name: str, source: ModelSource, on_event: Listener) -> None:
        self.name = name
        self.source = source
        self._on_event = on_event
        self._backend: Backend | None = None
        self._loading: asyncio.Task[Backend] | None = None
        self._error: str | None = None
        self._dead: Backend | None = None
        self._burial: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def ready(self) -> Backend | None:
        """The backend, if it takes requests."""
        backend = self._backend
        return backend if backend is not None and _failure(backend) is None else None

    async def get(self) -> Backend:
        if self._closed:
            raise BackendClosed("The runtime is closed.")
        self.examine()
        if self._backend is not None:
            return self._backend
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(), name=f"themis load {self.name}")
            self._loading.add_done_callback(_note_error)
        loading = self._loading
        # Not awaited itself: a caller who leaves must not stop a load that others wait for.
        await asyncio.wait([loading])
        if loading.cancelled():  # Only `aclose` does that.
            raise BackendClosed(f"The runtime was closed while model {self.name!r} was loading.")
        return loading.result()

    def examine(self) -> None:
        """If the backend has failed for good, close it; the next `get` loads another."""
        backend = self._backend
        failure = None if backend is None or self._closed else _failure(backend)
        if backend is None or failure is None:
            return
        _log.error("Model %r has failed and is loaded again on demand: %s", self.name, failure)
        self._backend, self._dead = None, backend
        self._error = str(failure)
        self._burial = asyncio.create_task(self._bury(backend), name=f"themis close {self.name}")

    async def _bury(self, backend: Backend) -> None:
        try:
            await backend.aclose()
        # Foreign code, already known to be broken; its model is loaded again nevertheless.
        except Exception:  # noqa: BLE001
            _log.exception("Model %r has failed, and could not be closed.", self.name)
        finally:
            self._on_event("themis_model_stopped", self.name, {})

    async def _load(self) -> Backend:
        if self._burial is not None:
            await asyncio.wait([self._burial])  # There may be no memory for both.
        backend: Backend | None = None
        try:
            backend = self.source.make()
            if backend is self._dead:
                raise self._gone()
            await backend.start()
        except BaseException as error:
            if backend is None or backend is not self._dead:
                self._error = str(error) if isinstance(error, ThemisError) else repr(error)
                if backend is not None:
                    await self._close_after(error, backend)
            raise
        else:
            self._error = None
            self._backend = backend
        finally:
            self._loading = None
        self._on_event("themis_model_started", self.name, {"info": backend.info})
        return backend

    async def _close_after(self, error: BaseException, backend: Backend) -> None:
        """Close what could not be started; why it could not is more than why this fails too."""
        try:
            await backend.aclose()
        except Exception as another:  # noqa: BLE001 - foreign code may raise anything.
            error.add_note(f"Closing model {self.name!r} failed too: {another!r}")

    def _gone(self) -> ModelLoadFailed:
        """A backend that was handed to `open` cannot be made a second time."""
        return ModelLoadFailed(
            f"Model {self.name!r} has failed, and its backend can be started only once: "
            f"{self._error}",
            remedy="Open a new runtime with a new backend.",
        )

    def status(self) -> ModelStatus:
        # Other threads ask too (`BlockingRuntime.models`), so this only looks.
        backend, loading = self._backend, self._loading
        info: ModelInfo | None = None
        error = self._error
        if backend is not None:
            try:
                info = backend.info
            except ThemisError as failure:
                error = str(failure)
        state: State
        if info is not None:
            state = "ready"
        elif loading is not None and not loading.done():
            state = "loading"
        else:
            state = "failed" if error else "unloaded"
        return ModelStatus(
            name=self.name,
            backend=self.source.backend,
            state=state,
            aliases=self.source.aliases,
            info=info,
            error=error,
            worker=backend.worker if isinstance(backend, IsolatedBackend) else None,
        )

    async def aclose(self) -> None:
        self._closed = True
        if self._loading is not None:
            self._loading.cancel()
        tasks = [t for t in (self._loading, self._burial) if t is not None and not t.done()]
        if tasks:
            await asyncio.wait(tasks)
        backend, self._backend = self._backend, None
        if backend is not None:
            try:
                await backend.aclose()
            finally:
                self._on_event("themis_model_stopped", self.name, {})


def _failure(backend: Backend) -> ThemisError | None:
    """Why a started backend takes no more requests; None if it does."""
    try:
        backend.info  # noqa: B018 - it raises once the backend is not running any more.
    except ThemisError as error:
        return error
    return None


def _note_error(loading: asyncio.Task[Backend]) -> None:
    # `status` tells the error; asyncio need not complain if everybody who waited has left.
    if not loading.cancelled():
        loading.exception()
