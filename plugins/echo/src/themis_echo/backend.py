"""`EchoBackend`: a whole `Backend`, written against the contract alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NoReturn

import msgspec

from themis_core.errors import (
    AdapterNotFound,
    BackendClosed,
    DeadlineExceeded,
    InvalidRequest,
    PromptTooLong,
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
from themis_echo.answer import END, VOCABULARY, Answer, decode, encode, make_answer
from themis_echo.settings import EchoSettings

# An echo gives the next byte of the prompt a probability of 1. Whatever reshapes a distribution
# without shifting single tokens leaves that as it is, so these fields are honoured as they come.
_RESHAPING = ("temperature", "top_k", "top_p", "min_p", "seed")
_FIELDS = {"prompt_token_ids", "messages", *(f"sampling.{name}" for name in _RESHAPING)}


class EchoBackend:
    """Answers with the prompt, or with the last message of the user."""

    def __init__(self, settings: EchoSettings) -> None:
        self._settings = settings
        self._stats = BackendStats()
        self._closing: asyncio.Event | None = None  # None: not running

    @property
    def info(self) -> ModelInfo:
        """Facts. Raises `BackendClosed` unless started."""
        self._running()
        return ModelInfo(
            backend="echo",
            context_length=self._settings.context,
            vocab_size=VOCABULARY,
            description="answers with the prompt",
            capabilities=Capabilities(tokenize=True, request_fields=frozenset(_FIELDS)),
        )

    async def start(self) -> None:
        """Nothing to load; a real backend loads its model here, off the event loop."""
        self._closing = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The prompt, word by word."""
        closing = self._running()
        clock = asyncio.get_running_loop().time
        deadline = None if request.timeout is None else clock() + request.timeout
        prompt = self._prompt_ids(request)
        answer = self._answer(prompt, request)
        self._count(requests=1, running=1, prompt_tokens=len(prompt))
        outcome = "cancelled"  # Unless one of the lines below is reached.
        try:
            yield Started(prompt_tokens=len(prompt))
            for delta in answer.deltas():
                await self._pause(closing, None if deadline is None else deadline - clock())
                self._count(steps=1, completion_tokens=len(delta.token_ids))
                yield delta
            outcome = "finished"
            yield answer.end
            used = Usage(prompt_tokens=len(prompt), completion_tokens=len(answer.token_ids))
            yield Done(usage=used)
        except ThemisError:
            outcome = "failed"
            raise
        finally:
            # Also when the caller closes this generator, or cancels the task that waits in it.
            self._count(running=-1, **{outcome: 1})

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Not possible."""
        raise UnsupportedField("An echo gives no embeddings.", field="inputs", plugin="echo")

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Bytes of UTF-8, each plus one. The chat template keeps the last message of the user."""
        self._running()
        return encode(prompt if isinstance(prompt, str) else _last_words(prompt))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of such ids."""
        self._running()
        _check_ids("token_ids", token_ids)
        return decode(token_ids)

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Not possible."""
        raise UnsupportedField("An echo takes no adapters.", field="adapters", plugin="echo")

    async def unload_adapter(self, name: str) -> None:
        """There is none."""
        raise AdapterNotFound(f"No adapter {name!r} is loaded.", field="adapters", plugin="echo")

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """None."""
        return ()

    async def stats(self) -> BackendStats:
        """Counters and gauges."""
        self._running()
        return self._stats

    async def aclose(self) -> None:
        """Wake all who wait in `_pause`; they raise `BackendClosed`."""
        if self._closing is not None:
            self._closing.set()
            self._closing = None

    def _running(self) -> asyncio.Event:
        if self._closing is None:
            _raise_closed()
        return self._closing

    def _prompt_ids(self, request: GenerateRequest) -> tuple[int, ...]:
        if isinstance(request.prompt, tuple):
            _check_ids("prompt", request.prompt)
            return request.prompt
        ids = encode(_last_words(request.messages) if request.prompt is None else request.prompt)
        if not ids:
            raise InvalidRequest("The user's message is empty.", field="messages", plugin="echo")
        return ids

    def _answer(self, prompt: tuple[int, ...], request: GenerateRequest) -> Answer:
        asked, context = request.sampling.max_tokens, self._settings.context
        if len(prompt) + (asked or 1) > context:
            raise PromptTooLong(
                f"The prompt of {len(prompt)} tokens and max_tokens={asked} exceed the context "
                f"of {context}.",
                field="prompt" if len(prompt) >= context else "sampling.max_tokens",
                remedy="Shorten the prompt, lower max_tokens, or configure a larger context.",
                plugin="echo",
            )
        spoken = tuple(token for token in prompt if token != END)
        token_ids = encode(self._settings.prefix) + spoken
        return make_answer(token_ids, asked or context - len(prompt), request.sampling.stop)

    async def _pause(self, closing: asyncio.Event, remaining: float | None) -> None:
        """Wait as long as one word takes. Raises `DeadlineExceeded` and `BackendClosed`."""
        delay = self._settings.delay
        late = remaining is not None and remaining <= delay
        try:
            async with asyncio.timeout(remaining if late else delay):
                await closing.wait()
        except TimeoutError:
            if late:
                message = "The request was not finished within its timeout."
                raise DeadlineExceeded(message, field="timeout", plugin="echo") from None
        else:
            _raise_closed()

    def _count(self, **changes: int) -> None:
        values = {name: getattr(self._stats, name) + n for name, n in changes.items()}
        self._stats = msgspec.structs.replace(self._stats, **values)


def _last_words(messages: tuple[ChatMessage, ...]) -> str:
    said = [message.content for message in messages if message.role == "user"]
    if not said:
        raise InvalidRequest("No message is the user's.", field="messages", plugin="echo")
    return said[-1]


def _check_ids(field: str, ids: tuple[int, ...]) -> None:
    wrong = next((i for i in ids if not 0 <= i < VOCABULARY), None)
    if wrong is not None:
        message = f"{field} has token id {wrong}, but ids go from 0 to {VOCABULARY - 1}."
        raise InvalidRequest(message, field=field, plugin="echo")


def _raise_closed() -> NoReturn:
    raise BackendClosed("The backend is not running.", plugin="echo")
