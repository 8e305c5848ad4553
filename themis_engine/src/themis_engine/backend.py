"""`EngineBackend`: a `ModelRunner` with everything around it is a `Backend`."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from typing import Annotated

import msgspec

from themis_core.errors import (
    AdapterNotFound,
    BackendClosed,
    ModelLoadFailed,
    PromptTooLong,
    RequestTooLarge,
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
)
from themis_engine.crossing import Crossing, EventStream
from themis_engine.loop import EngineLoop
from themis_engine.prompt import PromptEncoder
from themis_engine.runner import ModelRunner
from themis_engine.sequence import Sequence
from themis_engine.text import TextStream

_FIELDS = frozenset(
    {
        "prompt_token_ids",
        "priority",
        "sampling.min_tokens",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.min_p",
        "sampling.repetition_penalty",
        "sampling.frequency_penalty",
        "sampling.presence_penalty",
        "sampling.logit_bias",
        "sampling.seed",
        "sampling.logprobs",
        "sampling.stop_token_ids",
        "sampling.ignore_eos",
    }
)


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the engine schedules; backends built on it have these among their own settings."""

    prefill_chunk: Annotated[
        int,
        msgspec.Meta(
            ge=1, description="Most prompt tokens computed in one step while others decode."
        ),
    ] = 256


class EngineBackend:
    """A `Backend` that runs `load()`'s runner with continuous batching.

    `load` is called by `start`, in the engine's thread. `backend` is the name that statistics and
    errors carry.
    """

    def __init__(
        self,
        load: Callable[[], ModelRunner],
        *,
        backend: str,
        options: EngineOptions | None = None,
    ) -> None:
        self._load = load
        self._backend = backend
        self._options = options or EngineOptions()
        self._engine: EngineLoop | None = None
        self._runner: ModelRunner | None = None
        self._prompts: PromptEncoder | None = None
        self._info: ModelInfo | None = None
        self._arrivals = itertools.count()

    @property
    def info(self) -> ModelInfo:
        """Facts about the model. Raises `BackendClosed` before `start` and after `aclose`."""
        if self._info is None:
            raise self._closed()
        return self._info

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

        self._engine = EngineLoop(
            self._load,
            Crossing(loop),
            on_ready,
            name=self._backend,
            prefill_chunk=self._options.prefill_chunk,
        )
        self._engine.start()
        try:
            runner = await ready
            if self._engine is None:  # Closed while it was loading.
                raise self._closed()
            self._prompts = PromptEncoder(runner)
            self._info = _describe(runner, self._backend, chat=self._prompts.chat)
            self._runner = runner
        except BaseException:  # Cancelled or failed: nothing may stay allocated.
            await self.aclose()
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request. Closing the generator cancels it within one step."""
        engine, sequence = await self._submit(request)
        try:
            while True:
                event = await sequence.stream.next()
                yield event
                if isinstance(event, Done):
                    return
        finally:
            engine.cancel(sequence)

    async def _submit(self, request: GenerateRequest) -> tuple[EngineLoop, Sequence]:
        deadline = None if request.timeout is None else time.monotonic() + request.timeout
        params, prompts = request.sampling, self._encoder()
        prompts.check_ids("sampling.logit_bias", params.logit_bias)
        prompts.check_ids("sampling.stop_token_ids", params.stop_token_ids)
        prompt = await prompts.request(request)
        runner, engine = self._started()
        sequence = Sequence(
            request=request,
            stream=EventStream(),
            prompt_length=len(prompt),
            tokens=prompt,
            limit=_output_limit(len(prompt), params.max_tokens, runner),
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            arrival=next(self._arrivals),
            text=TextStream(params.stop),
            deadline=deadline,
        )
        engine.submit(sequence)
        return engine, sequence

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Not yet possible with a `ModelRunner`."""
        self._started()
        raise UnsupportedField("This model gives no embeddings.", field="inputs")

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages through the chat template."""
        return tuple(await self._encoder().encode(prompt))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        return self._encoder().decode(token_ids)

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Not yet possible with a `ModelRunner`."""
        self._started()
        raise UnsupportedField("This model takes no adapters.", field="adapters")

    async def unload_adapter(self, name: str) -> None:
        """Not yet possible with a `ModelRunner`."""
        self._started()
        raise AdapterNotFound(f"No adapter {name!r} is loaded.", field="adapters")

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """None."""
        self._started()
        return ()

    async def stats(self) -> BackendStats:
        """Counters and gauges of the engine."""
        return self._started()[1].stats()

    async def aclose(self) -> None:
        """Stop the thread and free the model."""
        engine, self._engine = self._engine, None
        self._runner = self._prompts = self._info = None
        if engine is not None:
            engine.stop()
            # Shielded: a cancelled close must still not leave the thread behind.
            await asyncio.shield(asyncio.to_thread(engine.join))

    def _started(self) -> tuple[ModelRunner, EngineLoop]:
        if self._runner is None or self._engine is None:
            raise self._closed()
        return self._runner, self._engine

    def _encoder(self) -> PromptEncoder:
        if self._prompts is None:
            raise self._closed()
        return self._prompts

    def _closed(self) -> BackendClosed:
        return BackendClosed("The backend is not running.", plugin=self._backend)


def _describe(runner: ModelRunner, backend: str, *, chat: bool) -> ModelInfo:
    info = runner.info
    if info.max_batch < info.max_sequences:
        raise ModelLoadFailed(
            f"max_batch ({info.max_batch}) must be at least max_sequences ({info.max_sequences})."
        )
    return ModelInfo(
        backend=backend,
        context_length=info.context_length,
        vocab_size=info.vocab_size,
        parameters=info.parameters,
        size_bytes=info.size_bytes,
        description=info.description,
        capabilities=Capabilities(
            tokenize=True,
            batch_invariant=info.batch_invariant,
            request_fields=_FIELDS | {"messages"} if chat else _FIELDS,
        ),
    )


def _output_limit(prompt_length: int, max_tokens: int | None, runner: ModelRunner) -> int:
    """The most tokens that may be generated; nothing is shortened that was asked for."""
    context, capacity = runner.info.context_length, runner.info.kv_capacity
    needed = prompt_length + (max_tokens or 1)
    if needed > context:
        asked = f" and max_tokens={max_tokens}" if max_tokens else ""
        raise PromptTooLong(
            f"The prompt of {prompt_length} tokens{asked} needs {needed} positions, but the "
            f"model's context has {context}.",
            field="prompt" if prompt_length >= context else "sampling.max_tokens",
            remedy="Shorten the prompt, lower max_tokens, or configure a larger context.",
        )
    if needed > capacity:
        raise RequestTooLarge(
            f"The request needs {needed} tokens of KV cache, but there are only {capacity}.",
            field="sampling.max_tokens",
            remedy="Lower max_tokens, or configure a larger KV cache.",
        )
    return max_tokens or min(context, capacity) - prompt_length
