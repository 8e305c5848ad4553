"""`EngineBackend`: a `ModelRunner` with everything around it is a `Backend`."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from functools import partial

from themis_core.errors import BackendClosed, ThemisError, UnsupportedField
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    Usage,
)
from themis_engine.adapter_choice import choose_adapters, query_of
from themis_engine.adapters import AdapterRegistry
from themis_engine.assembly import assemble, file_of
from themis_engine.crossing import Crossing
from themis_engine.embedding import EmbeddingJob, Vector
from themis_engine.intake import Intake
from themis_engine.loop import EngineLoop
from themis_engine.model_info import describe
from themis_engine.options import EngineOptions
from themis_engine.runner import AdapterRunner, ModelRunner
from themis_engine.stepper import Stepper


class EngineBackend:
    """A `Backend` that runs `load()`'s runner with continuous batching.

    `load` is called by `start`, in the engine's thread, and so is `draft`, which loads the draft
    model where `options.speculation` asks for one. `backend` is the name that statistics and
    errors carry.
    """

    def __init__(
        self,
        load: Callable[[], ModelRunner],
        *,
        backend: str,
        options: EngineOptions | None = None,
        draft: Callable[[], ModelRunner] | None = None,
    ) -> None:
        self._load = load
        self._draft = draft
        self._backend = backend
        self._options = options or EngineOptions()
        self._engine: EngineLoop | None = None
        self._running: _Running | None = None

    @property
    def info(self) -> ModelInfo:
        """Facts about the model. Raises `BackendClosed` before `start` and after `aclose`, and
        `BackendFailed` once the engine has failed for good.
        """
        running = self._started()
        if running.engine.ended is not None:
            raise copy.copy(running.engine.ended)
        return running.info

    async def start(self) -> None:
        """Load the model in the engine's thread."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[ModelRunner] = loop.create_future()

        def on_ready(result: ModelRunner | ThemisError) -> None:
            if ready.done():  # `start` was cancelled; its clean-up closes the engine.
                return
            if isinstance(result, ThemisError):
                ready.set_exception(result)
            else:
                ready.set_result(result)

        crossing = Crossing(loop)
        load = partial(assemble, self._load, self._draft, self._options, crossing)
        self._engine = EngineLoop(load, crossing, on_ready, name=self._backend)
        self._engine.start()
        try:
            runner = await ready
            if self._engine is None:  # Closed while it was loading.
                raise self._closed()
            running = _Running(runner, self._engine, self._options, self._backend)
            for name, adapter in self._options.adapters.items():
                running.adapters.add(name, file_of(adapter).description)
            self._running = running
        except BaseException:  # Cancelled or failed: nothing may stay allocated.
            await self.aclose()
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request. Closing the generator cancels it within one step."""
        running = self._started()
        chosen = await self._choose_adapters(running, request)
        with running.adapters.lease(chosen or request.adapters) as adapters:
            job = await running.intake.prepare(request, adapters, chosen)
            running.engine.submit(job.group)
            try:
                while not job.output.done:
                    events, error = job.output.take(await job.group.stream.take())
                    # At once: the engine must not compute on for a reader who is slow.
                    for index in job.output.ended_by_text():
                        running.engine.finish(job.group.sequences[index])
                    for event in events:
                        yield event
                    if error is not None:
                        raise error
            finally:
                running.engine.cancel(job.group)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Vectors of length 1. Raises `UnsupportedField` if the model gives no embeddings."""
        running = self._started()
        if not running.info.capabilities.embed:
            raise UnsupportedField("This model gives no embeddings.", field="inputs")
        texts = [await running.intake.text(item) for item in request.inputs]
        vectors = await self._embed(running, texts)
        return EmbedResponse(
            embeddings=tuple(tuple(map(float, vector)) for vector in vectors),
            usage=Usage(prompt_tokens=sum(map(len, texts))),
        )

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages through the chat template."""
        return tuple(await self._started().intake.prompts.encode(prompt))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        return self._started().intake.prompts.decode(token_ids)

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Make a LoRA adapter usable while others run."""
        running = self._started()
        if not running.info.capabilities.adapters:
            raise UnsupportedField("This model takes no adapters.", field="adapters")
        await running.adapters.load(name, path, description)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter, once those who use it have finished."""
        await self._started().adapters.unload(name)

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """The loaded adapters, by name."""
        return tuple(AdapterWeight(name=name) for name in self._started().adapters.names)

    async def stats(self) -> BackendStats:
        """Counters and gauges of the engine."""
        return self._started().engine.stats()

    async def aclose(self) -> None:
        """Stop the thread and free the model."""
        engine, self._engine = self._engine, None
        self._running = None
        if engine is not None:
            engine.stop()
            # Shielded: a cancelled close must still not leave the thread behind.
            await asyncio.shield(asyncio.to_thread(engine.join))

    # --- inside ----------------------------------------------------------------------------------

    async def _choose_adapters(
        self, running: _Running, request: GenerateRequest
    ) -> tuple[AdapterWeight, ...]:
        """Adapters for a request that names none, where the model is set up so."""
        if self._options.adapter_choice == "request" or request.adapters:
            return ()
        query, descriptions = query_of(request), running.adapters.descriptions
        if not query or not descriptions:
            return ()
        texts = [query, *(t for t in descriptions.values() if t not in running.described)]
        ids = [await running.intake.text(text) for text in texts]
        # A long query is judged by its end, which the model can embed.
        most = running.info.context_length
        vectors = await self._embed(running, [i[-most:] for i in ids])
        running.described.update(zip(texts[1:], vectors[1:], strict=True))
        known = {name: running.described[text] for name, text in descriptions.items()}
        return choose_adapters(vectors[0], known)

    async def _embed(self, running: _Running, texts: list[list[int]]) -> list[Vector]:
        info = running.runner.info
        job = EmbeddingJob(texts, self._options.pooling or info.pooling, info)
        future: Future[list[Vector]] = Future()
        await asyncio.wrap_future(running.engine.call(lambda s: s.embed(job, future)))
        return await asyncio.wrap_future(future)

    def _started(self) -> _Running:
        if self._running is None:
            raise self._closed()
        return self._running

    def _closed(self) -> BackendClosed:
        return BackendClosed("The backend is not running.", plugin=self._backend)


class _Running:
    """What there is between `start` and `aclose`."""

    def __init__(
        self, runner: ModelRunner, engine: EngineLoop, options: EngineOptions, backend: str
    ) -> None:
        self.runner = runner
        self.engine = engine
        self.intake = Intake(runner, options)
        self.info = describe(runner, backend, self.intake)
        self.adapters = AdapterRegistry(self._load_adapter, self._unload_adapter)
        self.described: dict[str, Vector] = {}

    async def _load_adapter(self, name: str, path: str) -> None:
        def load(stepper: Stepper) -> None:
            assert isinstance(self.runner, AdapterRunner)
            self.runner.load_adapter(name, path)

        await asyncio.wrap_future(self.engine.call(load))

    async def _unload_adapter(self, name: str) -> None:
        def unload(stepper: Stepper) -> None:
            assert isinstance(self.runner, AdapterRunner)
            stepper.forget_adapter(name)
            self.runner.unload_adapter(name)

        await asyncio.wrap_future(self.engine.call(unload))
