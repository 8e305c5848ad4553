"""`ScriptedBackend`: a backend that says, holds and fails exactly as a test wrote it down."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import NoReturn

import msgspec

from themis_core.errors import (
    AdapterNotFound,
    BackendClosed,
    DeadlineExceeded,
    ThemisError,
    UnsupportedField,
)
from themis_core.messages import (
    OPTIONAL_FIELDS,
    AdapterWeight,
    BackendStats,
    Capabilities,
    ChatMessage,
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    Started,
    Usage,
)


class Hold:
    """A point of a script where the generation stalls until it is released, for all requests."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._released = asyncio.Event()

    async def reached(self) -> None:
        """Wait until a generation stands here."""
        await self._reached.wait()

    def release(self) -> None:
        """Let the generation go on."""
        self._released.set()

    async def pass_through(self) -> None:
        """Stand here until released; what `ScriptedBackend` does."""
        self._reached.set()
        await self._released.wait()


Step = GenerateEvent | Hold | ThemisError
Script = Iterable[Step] | Callable[[GenerateRequest], Iterable[Step]]

_INFO = ModelInfo(backend="scripted", capabilities=Capabilities(request_fields=OPTIONAL_FIELDS))


def say(*pieces: str, prompt_tokens: int = 1) -> list[GenerateEvent]:
    """The events of an answer whose tokens are these pieces of text, with ids 0, 1, 2, …"""
    deltas = [Delta(text=text, token_ids=(i,)) for i, text in enumerate(pieces)]
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(pieces))
    started = Started(prompt_tokens=prompt_tokens)
    return [started, *deltas, Finished(reason="stop"), Done(usage=usage)]


class ScriptedBackend:
    """Plays `script` for every request: events are sent, errors raised, at a `Hold` it stalls.

    A script can be a function of the request. It is played to the letter: `max_tokens` and stop
    strings have no effect, unless the function sees to it; `timeout` has. `start_error` is what
    `start` raises. `requests`, `finished` and `cancelled` (request ids) tell what happened.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        info: ModelInfo = _INFO,
        start_error: ThemisError | None = None,
    ) -> None:
        self._script = script if callable(script) else tuple(script)
        self._info = info
        self._start_error = start_error
        self._stats = BackendStats()
        self._closing: asyncio.Event | None = None
        self.requests: list[GenerateRequest] = []
        self.finished: list[str] = []
        self.cancelled: list[str] = []
        self.starts = 0
        self.closes = 0

    @property
    def info(self) -> ModelInfo:
        """The `info` given. Raises `BackendClosed` unless started."""
        self._running()
        return self._info

    async def start(self) -> None:
        """Raises `start_error`, if there is one."""
        self.starts += 1
        if self._start_error is not None:
            raise copy.copy(self._start_error)
        self._closing = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Play the script."""
        closing = self._running()
        clock = asyncio.get_running_loop().time
        deadline = None if request.timeout is None else clock() + request.timeout
        self.requests.append(request)
        self._count(requests=1, running=1)
        outcome = "cancelled"
        try:
            for step in self._script(request) if callable(self._script) else self._script:
                remaining = None if deadline is None else deadline - clock()
                await _stand(step, closing, remaining)
                if isinstance(step, Done):
                    outcome = "finished"
                if not isinstance(step, Hold | ThemisError):
                    self._count_event(step)
                    yield step
        except ThemisError:
            outcome = "failed"
            raise
        finally:
            self._count(running=-1, **{outcome: 1})
            if outcome != "failed":
                ended = self.finished if outcome == "finished" else self.cancelled
                ended.append(request.request_id)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Not possible."""
        self._running()
        raise UnsupportedField("A scripted backend gives no embeddings.", field="inputs")

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Not possible."""
        self._running()
        raise UnsupportedField("A scripted backend has no tokenizer.", field="prompt")

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """Not possible."""
        self._running()
        raise UnsupportedField("A scripted backend has no tokenizer.", field="token_ids")

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Not possible."""
        raise UnsupportedField("A scripted backend takes no adapters.", field="adapters")

    async def unload_adapter(self, name: str) -> None:
        """There is none."""
        raise AdapterNotFound(f"No adapter {name!r} is loaded.", field="adapters")

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """None."""
        return ()

    async def stats(self) -> BackendStats:
        """Counters and gauges of what has been played."""
        self._running()
        return self._stats

    async def aclose(self) -> None:
        """Requests in flight raise `BackendClosed`, at a `Hold` as well."""
        self.closes += 1
        if self._closing is not None:
            self._closing.set()
            self._closing = None

    def _running(self) -> asyncio.Event:
        if self._closing is None:
            _raise_closed()
        return self._closing

    def _count_event(self, event: GenerateEvent) -> None:
        if isinstance(event, Started):
            self._count(prompt_tokens=event.prompt_tokens)
        elif isinstance(event, Delta):
            self._count(steps=1, completion_tokens=len(event.token_ids))

    def _count(self, **changes: int) -> None:
        values = {name: getattr(self._stats, name) + n for name, n in changes.items()}
        self._stats = msgspec.structs.replace(self._stats, **values)


async def _stand(step: Step, closing: asyncio.Event, remaining: float | None) -> None:
    """Before a step: let others run, and raise what must be raised instead of it."""
    await asyncio.sleep(0)
    if isinstance(step, Hold):
        waits = [asyncio.ensure_future(w) for w in (step.pass_through(), closing.wait())]
        try:
            await asyncio.wait(waits, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            held = not waits[0].done()
        finally:
            for wait in waits:
                wait.cancel()
        late = held
    else:
        late = remaining is not None and remaining <= 0
    if closing.is_set():
        _raise_closed()
    if late:
        raise DeadlineExceeded("The request was not finished in time.", field="timeout")
    if isinstance(step, ThemisError):
        # Each caller raises its own copy: a shared one would mix their tracebacks.
        raise copy.copy(step)


def _raise_closed() -> NoReturn:
    raise BackendClosed("The backend is not running.", plugin="scripted")
