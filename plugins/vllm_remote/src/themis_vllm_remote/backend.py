"""`VllmBackend`: a `Backend` on any door. What all doors share is here, what differs is not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

import msgspec

from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    DeadlineExceeded,
    ThemisError,
    UnsupportedField,
)
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    Capabilities,
    ChatMessage,
    Done,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    Started,
    Usage,
)
from themis_engine.adapters import AdapterRegistry
from themis_vllm_remote.checks import one_adapter, salt_of
from themis_vllm_remote.door import Door, Facts, Order, Piece
from themis_vllm_remote.resuming import resumed
from themis_vllm_remote.tally import Counted, Tally
from themis_vllm_remote.texts import Texts
from themis_vllm_remote.waiting import Waits

TextsFor = Callable[[Facts], Awaitable[tuple[Facts, Texts]]]
_OF_DOORS = frozenset({"cache_salt", "adapters"})
_PATIENCE = 1.0  # Seconds that the end of a finished stream is worth.


class VllmBackend:
    """One model behind one door.

    `texts_for` makes what turns requests into orders, once the door knows the model, and may add
    to the facts. `fields` are
    those that the door can carry of `cache_salt` and `adapters`. `shared_prefixes`: tenants are
    not separated in the server's cache. `resumes`: so often a stream whose server died is gone on
    with. `plugin` is the name that errors carry.
    """

    def __init__(
        self,
        door: Door,
        texts_for: TextsFor,
        *,
        plugin: str,
        fields: frozenset[str] = _OF_DOORS,
        shared_prefixes: bool = False,
        resumes: int = 0,
    ) -> None:
        self._door = door
        self._texts_for = texts_for
        self._plugin = plugin
        self._fields = fields
        self._shared = shared_prefixes
        self._resumes = resumes
        self._running: _Running | None = None

    @property
    def info(self) -> ModelInfo:
        """Facts about the model. Raises `BackendClosed` unless started."""
        return self._started().info

    async def start(self) -> None:
        """Open the door. Raises `ModelLoadFailed` with what kept it shut."""
        try:
            facts, texts = await self._texts_for(await self._door.open())
            running = _Running(facts, texts, self._door, self._plugin)
            running.describe(self._fields, self._plugin)
            self._running = running
        except BaseException:  # Cancelled or failed: nothing may stay open.
            await self.aclose()
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request. Closing the generator stops it at vLLM."""
        running = self._started()
        clock = asyncio.get_running_loop().time
        deadline = None if request.timeout is None else clock() + request.timeout
        self._check(request, running)
        with running.adapters.lease(request.adapters) as leased, Counted(running.tally) as counted:
            adapter = one_adapter(leased, self._plugin)

            def attempt(asked: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
                return self._attempt(running, asked, adapter, deadline, counted)

            async def back(pause: float) -> None:
                async def healthy() -> None:
                    await asyncio.sleep(pause)
                    await self._door.back()

                await running.waits.until(deadline, healthy)

            most = self._resumes
            events = resumed(attempt, back, request, running.info, most) if most else None
            async with aclosing(events or attempt(request)) as stream:
                async for event in stream:
                    if isinstance(event, Started):
                        counted.began(event.prompt_tokens, event.cached_tokens)
                    elif isinstance(event, Done):
                        counted.finished()
                    yield event

    async def _attempt(
        self,
        running: _Running,
        request: GenerateRequest,
        adapter: str | None,
        deadline: float | None,
        counted: Counted,
    ) -> AsyncGenerator[GenerateEvent, None]:
        """The events from one stream of the door."""
        salt = salt_of(request, shared=self._shared)
        order, answer = await running.waits.until(
            deadline, lambda: running.texts.prepare(request, adapter, salt)
        )
        ended, copies = 0, 1
        if request.sampling.greedy and request.sampling.n > 1:
            # Equal, and vLLM refuses to compute them more than once.
            copies, order = request.sampling.n, _single(order)
        async with aclosing(self._door.generate(order)) as stream:
            while not answer.done:
                pieces = await self._next(running, stream, order, deadline)
                if copies > 1:
                    pieces = [replace(p, index=i) for i in range(copies) for p in pieces]
                events, error = answer.take(pieces)
                counted.tokens(sum(len(piece.token_ids) for piece in pieces))
                ended += sum(piece.reason is not None for piece in pieces)
                for event in events:
                    yield event
                if error is not None:
                    raise error
            if ended >= request.sampling.n:
                await self._rest(stream)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Vectors of length 1. Raises `UnsupportedField` if the server does not embed."""
        running = self._started()
        if not running.facts.embed:
            raise UnsupportedField(
                "This server gives no embeddings.",
                field="inputs",
                remedy="Start another one with --runner pooling.",
                plugin=self._plugin,
            )
        inputs = await running.texts.embeddable(request.inputs)
        found = await running.waits.until(None, lambda: self._door.embed(inputs))
        return EmbedResponse(
            embeddings=tuple(map(_unit, found.vectors)),
            usage=Usage(prompt_tokens=found.prompt_tokens),
        )

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages through the template."""
        running = self._started()
        return await running.waits.until(None, lambda: running.texts.encode(prompt))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        running = self._started()
        return await running.waits.until(None, lambda: running.texts.decode(token_ids))

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Load a LoRA adapter from a directory of the server's host."""
        running = self._started()
        if not running.info.capabilities.adapters:
            raise UnsupportedField(
                "This server takes no adapters while it runs.",
                field="adapters",
                remedy="Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and "
                "use HTTP or a Themis worker: its gRPC service has none.",
                plugin=self._plugin,
            )
        await running.adapters.load(name, path, description)

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter, once those who use it have finished."""
        await self._started().adapters.unload(name)

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """The adapters that requests may name."""
        return tuple(AdapterWeight(name=name) for name in self._started().adapters.names)

    async def stats(self) -> BackendStats:
        """What this backend asked of the server; others may use it too."""
        return self._started().tally.stats()

    async def aclose(self) -> None:
        """End all requests and close all connections."""
        running, self._running = self._running, None
        if running is not None:
            running.waits.close()
        # Shielded: a cancelled close must still not leave connections behind.
        await asyncio.shield(asyncio.ensure_future(self._door.aclose()))

    # --- inside ----------------------------------------------------------------------------------

    async def _next(
        self,
        running: _Running,
        stream: AsyncGenerator[list[Piece], None],
        order: Order,
        deadline: float | None,
    ) -> list[Piece]:
        try:
            pieces = await running.waits.until(deadline, lambda: anext(stream, None))
            if pieces is not None and order.texts and order.request.sampling.logprobs is not None:
                await running.waits.until(deadline, lambda: running.texts.learn(pieces))
        except ThemisError as error:
            if self._running is not running and not isinstance(error, BackendClosed):
                raise self._closed() from error
            better = await self._explained(running, error, order, deadline)
            if better is error:
                raise
            raise better from error
        if pieces is None:
            raise BackendFailed(
                "The stream ended before the answer did.",
                remedy="Repeat the request.",
                plugin=self._plugin,
            )
        return pieces

    async def _explained(
        self, running: _Running, error: ThemisError, order: Order, deadline: float | None
    ) -> ThemisError:
        try:
            return await running.waits.until(deadline, lambda: running.texts.explain(error, order))
        except (DeadlineExceeded, BackendClosed):  # Of the wait: they concern the whole request.
            raise
        except ThemisError:  # What the server said first says more than a failed look-up.
            return error

    async def _rest(self, stream: AsyncGenerator[list[Piece], None]) -> None:
        """Read a stream to its end, so that its connection can serve the next request."""
        with suppress(TimeoutError, ThemisError):
            async with asyncio.timeout(_PATIENCE):
                async for _ in stream:
                    pass

    def _check(self, request: GenerateRequest, running: _Running) -> None:
        """A tenant is nobody's option: where it cannot be separated, it is refused."""
        fields = running.info.capabilities.request_fields
        if request.tenant is not None and not self._shared and "cache_salt" not in fields:
            raise UnsupportedField(
                "Tenants share the prefix cache of a vLLM server behind gRPC.",
                field="tenant",
                remedy='Use HTTP, or set prefixes = "shared" if they may.',
                plugin=self._plugin,
            )

    def _started(self) -> _Running:
        if self._running is None:
            raise self._closed()
        return self._running

    def _closed(self) -> BackendClosed:
        return BackendClosed("The backend is not running.", plugin=self._plugin)


class _Running:
    """What there is between `start` and `aclose`."""

    def __init__(self, facts: Facts, texts: Texts, door: Door, plugin: str) -> None:
        self.facts = facts
        self.texts = texts
        self.tally = Tally()
        self.waits = Waits(plugin)
        self.adapters = AdapterRegistry(door.load_adapter, door.unload_adapter)
        for name in facts.adapters:
            self.adapters.add(name, "")
        self.info = ModelInfo(backend=plugin)

    def describe(self, of_door: frozenset[str], plugin: str) -> None:
        """Facts and capabilities."""
        facts = self.facts
        fields = self.texts.fields | of_door
        if not (facts.takes_adapters or facts.adapters):
            fields -= {"adapters"}
        version = f" {facts.version}" if facts.version else ""
        self.info = ModelInfo(
            backend=plugin,
            context_length=facts.context,
            vocab_size=facts.vocab_size,
            description=f"{facts.model} on vLLM{version}",
            capabilities=Capabilities(
                generate=facts.generate,
                embed=facts.embed,
                tokenize=True,
                adapters=facts.takes_adapters,
                batch_invariant=False,
                request_fields=fields if facts.generate else frozenset(),
            ),
        )


def _single(order: Order) -> Order:
    params = msgspec.structs.replace(order.request.sampling, n=1)
    return replace(order, request=msgspec.structs.replace(order.request, sampling=params))


def _unit(vector: tuple[float, ...]) -> tuple[float, ...]:
    """Length 1, whatever the server's pooler was told."""
    length = math.hypot(*vector) or 1.0
    return tuple(value / length for value in vector)
