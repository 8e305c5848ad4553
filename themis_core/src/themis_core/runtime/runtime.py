"""`Runtime`: the way of a request through the house, in seven steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from themis_core.contracts import Backend, Quota, Validator
from themis_core.errors import DeadlineExceeded, UnsupportedField
from themis_core.messages import (
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
from themis_core.runtime.fields import check_fields, with_timeout
from themis_core.runtime.gather import gather
from themis_core.runtime.models import Listener, ModelPool, ModelSource, ModelStatus
from themis_core.runtime.release import Release
from themis_core.runtime.router import Router


class Runtime:
    """Models and the plugins around them, ready for requests.

    Made by `themis_core.open`. Enter it as an async context manager, or call `start` and `aclose`.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSource],
        *,
        default: str,
        validators: Sequence[Validator] = (),
        quota: Quota | None = None,
        on_event: Listener = lambda hook, model, arguments: None,
    ) -> None:
        aliases = {alias: name for name, m in models.items() for alias in m.aliases}
        self._router = Router(list(models), aliases, default)
        self._pool = ModelPool(models, on_event)
        self._validators = validators
        self._quota = quota

    async def start(self) -> None:
        """Load the models that are to be preloaded. Raises what their `start` raises."""
        try:
            await self._pool.start()
        except BaseException:  # Failed or cancelled: the models that did load must go.
            await self.aclose()
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request, in the order of `themis_core.messages.events`.

        Raises a `ThemisError`. Closing the generator cancels everything behind it.
        """
        started = time.monotonic()
        # 1 route
        model = self._router.route(request.model)
        # 2 admit
        async with Admission(request, self._validators, self._quota) as admission:
            request = admission.request
            # 3 reuse: no plugin yet; a cached answer or a running twin would end the way here.
            # 4 lease
            backend = await _in_time(self._pool.lease(model), request, started)
            check_fields(request, model, backend.info)
            if request.timeout is not None:
                remaining = _remaining(request, started)
                if remaining <= 0:
                    raise _expired(request)
                request = with_timeout(request, remaining)
            # 5 generate
            async with aclosing(backend.generate(request)) as events:
                release = Release(self._validators, request)
                async for event in events:
                    # 6 release
                    for released in release.pass_on(event):
                        if isinstance(released, Done):
                            # 7 settle, before the last event: nobody may ask for one more.
                            await admission.settle(released.usage)
                        yield released

    async def complete(self, request: GenerateRequest) -> Completion:
        """Like `generate`, gathered into one answer."""
        model = self._router.route(request.model)
        async with aclosing(self.generate(request)) as events:
            return await gather(events, request.request_id, model)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector for each input. Raises `UnsupportedField` if the model cannot embed."""
        model = self._router.route(request.model)
        backend = await self._pool.lease(model)
        if not backend.info.capabilities.embed:
            raise UnsupportedField(f"Model {model!r} gives no embeddings.", field="model")
        return await backend.embed(request)

    async def tokenize(
        self, prompt: str | tuple[ChatMessage, ...], model: str = ""
    ) -> tuple[int, ...]:
        """The token ids that a model sees for this prompt or these messages."""
        return await (await self._backend(model)).tokenize(prompt)

    async def model_info(self, model: str = "") -> ModelInfo:
        """Facts about a model, loading it if need be."""
        return (await self._backend(model)).info

    def models(self) -> tuple[ModelStatus, ...]:
        """All configured models, loaded or not."""
        return self._pool.status()

    async def stats(self) -> dict[str, BackendStats]:
        """The statistics of the loaded models, by name."""
        return await self._pool.stats()

    async def aclose(self) -> None:
        """Close everything; requests in flight raise `BackendClosed`. Twice is fine."""
        await self._pool.aclose()
        for validator in self._validators:
            await validator.aclose()
        if self._quota is not None:
            await self._quota.aclose()

    async def _backend(self, name: str) -> Backend:
        return await self._pool.lease(self._router.route(name))

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


async def _in_time(
    lease: Coroutine[Any, Any, Backend], request: GenerateRequest, started: float
) -> Backend:
    """Wait for a lease no longer than the request's own time allows."""
    if request.timeout is None:
        return await lease
    try:
        return await asyncio.wait_for(lease, max(0.0, _remaining(request, started)))
    except TimeoutError as error:
        raise _expired(request) from error


def _remaining(request: GenerateRequest, started: float) -> float:
    return (request.timeout or 0.0) - (time.monotonic() - started)


def _expired(request: GenerateRequest) -> DeadlineExceeded:
    message = f"The request was not finished within {request.timeout} seconds."
    return DeadlineExceeded(message, field="timeout")
