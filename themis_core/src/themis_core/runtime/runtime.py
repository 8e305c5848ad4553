"""`Runtime`: the way of a request through the house, in seven steps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from themis_core.config import Config
from themis_core.contracts import Backend, Quota, Validator
from themis_core.errors import ConfigInvalid, ModelNotFound, UnsupportedField
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    Completion,
    Done,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)
from themis_core.runtime.admission import Admission
from themis_core.runtime.deadline import Deadline
from themis_core.runtime.fields import check_fields
from themis_core.runtime.gather import gather
from themis_core.runtime.guards import guarded_quota, guarded_validators, hooks_of
from themis_core.runtime.hooks import HookStats, stats_of
from themis_core.runtime.models import Listener, ModelPool, ModelSource, ModelStatus
from themis_core.runtime.release import Release
from themis_core.runtime.reload import Assembler, Changeover, Parts, ReloadReport
from themis_core.runtime.router import Router


class Runtime:
    """Models and the plugins around them, ready for requests.

    Made by `themis_core.open`. Enter it as an async context manager, or call `start` and `aclose`.
    A model whose backend fails for good is loaded again by the next request that needs it.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSource],
        *,
        default: str,
        validators: Sequence[Validator] = (),
        quota: Quota | None = None,
        on_event: Listener = lambda hook, model, arguments: None,
        assembler: Assembler | None = None,
    ) -> None:
        aliases = {alias: name for name, m in models.items() for alias in m.aliases}
        router = Router(list(models), aliases, default)
        pool = ModelPool(models, on_event)
        validators, quota = guarded_validators(validators), guarded_quota(quota)
        self._changeover = Changeover(Parts(router, pool, validators, quota))
        self._assembler = assembler

    async def start(self) -> None:
        """Load the models that are to be preloaded. Raises what their `start` raises."""
        try:
            await self._pool.start()
        except BaseException as error:  # Failed or cancelled: the models that did load must go.
            try:
                await self.aclose()
            except Exception as another:  # noqa: BLE001 - the first error says more.
                error.add_note(f"Closing the runtime failed too: {another!r}")
            raise

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request, in the order of `themis_core.messages.events`.

        Raises a `ThemisError`. Closing the generator cancels everything behind it.
        """
        return self._events(request, _Way())

    async def complete(self, request: GenerateRequest) -> Completion:
        """Like `generate`, gathered into one answer; its `model` is the one that answered."""
        way = _Way()
        async with aclosing(self._events(request, way)) as events:
            completion = await gather(events, request.request_id, request.model)
        return msgspec.structs.replace(completion, model=way.model)

    async def _events(
        self, request: GenerateRequest, way: _Way
    ) -> AsyncGenerator[GenerateEvent, None]:
        deadline = Deadline()
        with self._changeover.use() as parts:
            # 1 route
            request = parts.router.apply(request)
            # 2 admit, where a validator may choose another model
            async with Admission(
                request, parts.router.apply, parts.validators, parts.quota, deadline
            ) as admission:
                request = admission.request
                way.model = request.model
                # 3 reuse: no plugin yet; a cached answer or a running twin would end the way here.
                # 4 lease
                backend = await deadline.bound(request, parts.pool.lease(request.model))
                with parts.pool.watched(request.model):
                    check_fields(request, request.model, backend.info)
                    request = deadline.pass_on(request)
                    # 5 generate
                    async with aclosing(backend.generate(request)) as events:
                        release = Release(parts.validators, request)
                        async for event in events:
                            # 6 release
                            for released in release.pass_on(event):
                                if isinstance(released, Done):
                                    # 7 settle, before the last event: nobody may ask for one more.
                                    await admission.settle(released.usage)
                                yield released

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector for each input. Raises `UnsupportedField` if the model cannot embed."""
        async with self._backend(request.model) as backend:
            if not backend.info.capabilities.embed:
                model = self._changeover.current.router.route(request.model)
                raise UnsupportedField(f"Model {model!r} gives no embeddings.", field="model")
            return await backend.embed(request)

    async def tokenize(
        self, prompt: str | tuple[ChatMessage, ...], model: str = ""
    ) -> tuple[int, ...]:
        """The token ids that a model sees for this prompt or these messages."""
        async with self._backend(model) as backend:
            return await backend.tokenize(prompt)

    async def load_adapter(
        self, name: str, path: str, *, model: str = "", description: str = ""
    ) -> None:
        """Make a LoRA adapter usable in requests to a model, until that is unloaded or fails.

        Raises `UnsupportedField`, `ModelFileInvalid` or `InvalidRequest` as `Backend` says.
        """
        async with self._backend(model) as backend:
            await backend.load_adapter(name, path, description)

    async def unload_adapter(self, name: str, *, model: str = "") -> None:
        """Forget an adapter, once those who use it have finished. Raises `AdapterNotFound`."""
        async with self._backend(model) as backend:
            await backend.unload_adapter(name)

    async def adapters(self, model: str = "") -> tuple[AdapterWeight, ...]:
        """The adapters that a model has loaded, with their default weights."""
        async with self._backend(model) as backend:
            return await backend.adapters()

    async def model_info(self, model: str = "") -> ModelInfo:
        """Facts about a model, loading it if need be."""
        async with self._backend(model) as backend:
            return backend.info

    @property
    def default_model(self) -> str:
        """The model that serves requests without a name; empty if there is none."""
        try:
            return self._changeover.current.router.route("")
        except ModelNotFound:
            return ""

    def models(self) -> tuple[ModelStatus, ...]:
        """All configured models, loaded or not."""
        return self._pool.status()

    async def stats(self) -> dict[str, BackendStats]:
        """The statistics of the loaded models, by name."""
        return await self._pool.stats()

    def hook_stats(self) -> tuple[HookStats, ...]:
        """How long the calls of validators and the quota took, and how many failed."""
        parts = self._changeover.current
        return stats_of(hooks_of([*parts.validators, parts.quota]))

    async def reload(self, config: str | Path | Config | None = None) -> ReloadReport:
        """Put another configuration in force; None reads the same file again.

        All or nothing: what raises (`ConfigInvalid`, a plugin's error, or the error of a model
        that is to be preloaded) leaves everything as it was. Requests that are running finish on
        the old models, validators and quota, which are closed when the last of them has ended;
        what is configured as before stays loaded.
        """
        if self._assembler is None:
            raise ConfigInvalid(
                "This runtime has no configuration to reload: it was made of backends at hand.",
                remedy="Open a new runtime.",
            )
        return await self._changeover.reload(self._assembler, config)

    async def aclose(self) -> None:
        """Close everything; requests in flight raise `BackendClosed`. Twice is fine.

        Everything is closed even if something raises; the first error is raised at the end, with
        notes on further ones.
        """
        await self._changeover.aclose()

    @property
    def _pool(self) -> ModelPool:
        return self._changeover.current.pool

    @asynccontextmanager
    async def _backend(self, name: str) -> AsyncIterator[Backend]:
        with self._changeover.use() as parts:
            model = parts.router.route(name)
            backend = await parts.pool.lease(model)
            with parts.pool.watched(model):
                yield backend

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Way:
    """What a request learns on its way: `model` is the one that it came to."""

    def __init__(self) -> None:
        self.model = ""
