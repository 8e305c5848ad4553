"""What all suites share: the fixture, the attributes to adapt, and running a check."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, ClassVar

import pytest

from themis_core.contracts import Backend
from themis_core.messages import (
    Choice,
    Completion,
    Delta,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    SamplingParams,
    Started,
)
from themis_core.runtime.gather import Gathering

BackendFactory = Callable[[], Backend]


class ConformanceBase:
    """Subclasses may change the attributes to suit their model."""

    prompt: ClassVar[str] = "The"
    """Whose answer is long: at least `long_generation_tokens`, if `ignore_eos` is not declared."""

    unicode_prompt: ClassVar[str] = "Grüße, 日本 🎉"
    """A text with characters of two, three and four bytes."""

    generation_tokens: ClassVar[int] = 24
    """The length of an ordinary answer in these checks."""

    long_generation_tokens: ClassVar[int] = 1000
    """An answer so long that it is still running when a check cancels it."""

    short_timeout: ClassVar[float] = 0.02
    """Seconds in which the long answer cannot be finished."""

    tie: ClassVar[float] = 0.05
    """So far apart two log-probabilities may be and still count as equal, where the shape of a
    batch changes the last bits (`batch_invariant` is not declared)."""

    has_one_answer: ClassVar[bool] = False
    """True if every prompt has just one possible answer, whatever the seed."""

    caches: ClassVar[bool] = False
    """True if the backend keeps prefixes of prompts, so that `cached_tokens` must show it."""

    deadline: ClassVar[float] = 60.0
    """Seconds after which a check has failed."""

    @pytest.fixture
    def backend_factory(self) -> BackendFactory:
        """A function that gives a new backend, not yet started, at each call."""
        raise NotImplementedError("a conformance suite needs the fixture backend_factory")

    @pytest.fixture
    def broken_backend_factory(self) -> BackendFactory:
        """The same, for a backend whose `start` fails: a missing file, say. Optional."""
        pytest.skip("the fixture broken_backend_factory is not given")

    # --- requests --------------------------------------------------------------------------------

    def request(
        self, backend: Backend, prompt: str | tuple[int, ...] | None = None, **sampling: Any
    ) -> GenerateRequest:
        """An ordinary request: greedy if the backend can be, of `generation_tokens`."""
        defaults: dict[str, Any] = {"max_tokens": self.generation_tokens}
        if "sampling.temperature" in fields(backend):
            defaults["temperature"] = 0.0
        params = SamplingParams(**(defaults | sampling))
        return GenerateRequest(prompt=prompt or self.prompt, sampling=params)

    def long_request(self, backend: Backend, **sampling: Any) -> GenerateRequest:
        """A request that takes long."""
        defaults: dict[str, Any] = {"max_tokens": self.long_generation_tokens}
        if "sampling.ignore_eos" in fields(backend):
            defaults["ignore_eos"] = True
        return self.request(backend, **(defaults | sampling))

    async def answer(
        self, backend: Backend, prompt: str | tuple[int, ...] | None = None, **sampling: Any
    ) -> Choice:
        """The only choice of an ordinary request."""
        return (await complete(backend, self.request(backend, prompt, **sampling))).choices[0]


def need(backend: Backend, *capabilities: str) -> None:
    """Skip the check unless all are declared: names of `Capabilities`, or request fields."""
    declared = backend.info.capabilities
    for name in capabilities:
        if not (name in declared.request_fields or getattr(declared, name, False) is True):
            pytest.skip(f"capability {name} not declared")


def on_backend(check: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a pytest function of a coroutine `check(self, backend, …)`.

    The backend that it gets is started, and closed behind it.
    """

    def run(self: ConformanceBase, backend_factory: BackendFactory, **parameters: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(self.deadline):
                backend = backend_factory()
                await backend.start()
                try:
                    await check(self, backend, **parameters)
                finally:
                    await backend.aclose()

        asyncio.run(main())

    # Not `functools.wraps`: pytest would look through it, and miss the fixture `backend_factory`.
    run.__name__, run.__doc__, run.__module__ = check.__name__, check.__doc__, check.__module__
    run.__signature__ = _with_factory(check)  # type: ignore[attr-defined]
    return run


def _with_factory(check: Callable[..., Any]) -> inspect.Signature:
    """The signature of a check, asking for `backend_factory` where the check takes `backend`."""
    signature = inspect.signature(check)
    own, backend, *others = signature.parameters.values()
    return signature.replace(parameters=[own, backend.replace(name="backend_factory"), *others])


def fields(backend: Backend) -> frozenset[str]:
    """The optional request fields that the backend declares."""
    return backend.info.capabilities.request_fields


async def collect(backend: Backend, request: GenerateRequest) -> list[GenerateEvent]:
    """All events of a request, its generator closed."""
    async with aclosing(backend.generate(request)) as events:
        return [event async for event in events]


async def complete(backend: Backend, request: GenerateRequest) -> Completion:
    """All events of a request, put together."""
    return completion(request, await collect(backend, request))


def completion(request: GenerateRequest, events: list[GenerateEvent]) -> Completion:
    """Put events together, the choices by index."""
    gathering = Gathering()
    for event in events:
        gathering.add(event)
    return gathering.completion(request.request_id, request.model)


async def begin(backend: Backend, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
    """A generation that is under way: its first delta has come."""
    events = backend.generate(request)
    async for event in events:
        if isinstance(event, Delta):
            return events
        assert isinstance(event, Started)
    raise AssertionError("the generation ended without a delta")


async def eventually(
    condition: Callable[[], Awaitable[bool]], *, what: str, within: float = 10.0
) -> None:
    """Wait until a condition holds; fail with `what` if it does not within so many seconds."""
    end = asyncio.get_running_loop().time() + within
    while not await condition():
        if asyncio.get_running_loop().time() > end:
            pytest.fail(f"not within {within} seconds: {what}")
        await asyncio.sleep(0.002)


async def idle(backend: Backend) -> None:
    """Wait until the backend runs nothing."""

    async def at_rest() -> bool:
        stats = await backend.stats()
        return stats.running == stats.waiting == 0

    await eventually(at_rest, what="stats() reports no running and no waiting request")


def visible_ids(choice: Choice, info: ModelInfo) -> tuple[int, ...]:
    """The token ids whose text is in the answer: all but an id that only ended it."""
    ended = choice.finish_reason == "stop" and not isinstance(choice.matched, str)
    assert all(0 <= token < info.vocab_size or not info.vocab_size for token in choice.token_ids)
    return choice.token_ids[:-1] if ended else choice.token_ids
