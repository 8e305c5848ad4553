"""A runtime that replays what a test scripts, behind the real server in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any, TypeVar

import httpx
import msgspec
import openai
import pytest

from themis_core.errors import UnsupportedField
from themis_core.messages import (
    BackendStats,
    Completion,
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
from themis_core.runtime import HookStats
from themis_core.runtime.gather import gather
from themis_core.worker import WorkerStatus
from themis_openai_server.server import OpenAIServer, create
from themis_openai_server.settings import OpenAISettings

T = TypeVar("T")
WAIT_S = 20.0  # Only a broken test waits so long.

USAGE = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=3)
HELLO: list[Any] = [
    Started(prompt_tokens=5, cached_tokens=3),
    Delta(text="Hel", token_ids=(1,)),
    Delta(text="lo", token_ids=(2,)),
    Finished(reason="stop"),
    Done(usage=USAGE),
]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the scripted runtime."""

    name: str
    backend: str = "scripted"
    state: str = "ready"
    aliases: tuple[str, ...] = ()
    info: ModelInfo | None = None
    worker: WorkerStatus | None = None


class Stall:
    """A place in a script where the generation waits until the test lets it go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._go = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self) -> None:
        """Called by the runtime."""
        self._loop = asyncio.get_running_loop()
        self.reached.set()
        await self._go.wait()

    def release(self) -> None:
        """Called by the test."""
        assert self.reached.wait(WAIT_S)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._go.set)


class ScriptedRuntime:
    """Replays `script` for every request; remembers requests, and generators closed early."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.reset()

    def reset(self) -> None:
        """Back to the script of "Hello"."""
        self.script: list[Any] = list(HELLO)
        self.by_prompt: dict[Any, list[Any]] = {}
        self.requests: list[GenerateRequest] = []
        self.embeds: list[EmbedRequest] = []
        self.closed_early = threading.Semaphore(0)
        self.vectors: tuple[tuple[float, ...], ...] | None = None
        self.default_model = "m"
        self.all_stats: dict[str, BackendStats] = {}
        self.all_hooks: list[HookStats] = []
        self.rows = [
            Row(name="m", aliases=("alias",), info=ModelInfo(backend="s", context_length=64))
        ]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The script."""
        self.requests.append(request)
        complete = False
        try:
            for item in self.by_prompt.get(request.prompt, self.script):
                if isinstance(item, Stall):
                    await item.wait()
                elif isinstance(item, Exception):
                    complete = True
                    raise item
                else:
                    complete = isinstance(item, Done)
                    yield item
        finally:
            if not complete:
                self.closed_early.release()

    async def complete(self, request: GenerateRequest) -> Completion:
        """The script, gathered."""
        async with aclosing(self.generate(request)) as events:
            return await gather(events, request.request_id, "m")

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """The scripted vectors."""
        self.embeds.append(request)
        if self.vectors is None:
            raise UnsupportedField("Model 'm' gives no embeddings.", field="model")
        return EmbedResponse(embeddings=self.vectors, usage=Usage(prompt_tokens=7))

    def models(self) -> list[Row]:
        """The scripted rows."""
        return self.rows

    async def stats(self) -> dict[str, BackendStats]:
        """The scripted figures."""
        return self.all_stats

    def hook_stats(self) -> list[HookStats]:
        """The scripted figures of hooks."""
        return self.all_hooks


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="server loop")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something there, and wait for it here."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def tasks(self) -> set[str]:
        """The names of all tasks but the one that asks."""

        async def names() -> set[str]:
            me = asyncio.current_task()
            return {task.get_name() for task in asyncio.all_tasks() if task is not me}

        return self.run(names())

    @contextmanager
    def running(self) -> Iterator[LoopThread]:
        """Start the thread; stop it at the end."""
        self._thread.start()
        try:
            yield self
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(WAIT_S)
            self.loop.close()


class Door:
    """A running server with its scripted runtime and its clients."""

    def __init__(
        self, server: OpenAIServer, runtime: ScriptedRuntime, client: openai.OpenAI
    ) -> None:
        self.server = server
        self.runtime = runtime
        self.client = client
        self.url = server.url
        self.port = int(server.url.rpartition(":")[2])

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        """A plain POST of JSON (or of bytes)."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return httpx.post(self.url + path, content=content, timeout=WAIT_S, **kwargs)

    def chat(self, **fields: Any) -> httpx.Response:
        """A plain chat request."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.post("/v1/chat/completions", body)

    def send_raw(self, path: str, body: Any) -> socket.socket:
        """A request on a bare socket, which the caller closes."""
        content = msgspec.json.encode(body)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        head = f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(content)}\r\n\r\n"
        raw.sendall(head.encode() + content)
        return raw


OpenDoor = Callable[..., Door]


@pytest.fixture(scope="session")
def server_loop() -> Iterator[LoopThread]:
    with LoopThread().running() as thread:
        yield thread


@contextmanager
def _opened(thread: LoopThread, settings: OpenAISettings, key: str) -> Iterator[Door]:
    runtime = ScriptedRuntime()
    server = create(settings, runtime, "127.0.0.1", 0)
    thread.run(server.start())
    try:
        with openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=WAIT_S
        ) as client:
            yield Door(server, runtime, client)
    finally:
        thread.run(server.aclose())


@pytest.fixture(scope="session")
def shared_door(server_loop: LoopThread) -> Iterator[Door]:
    with _opened(server_loop, OpenAISettings(), "none") as door:
        yield door


@pytest.fixture
def door(shared_door: Door) -> Door:
    """The shared server with default settings, its runtime reset."""
    shared_door.runtime.reset()
    return shared_door


@pytest.fixture
def open_door(server_loop: LoopThread) -> Iterator[OpenDoor]:
    """Further servers, with settings of their own."""
    with ExitStack() as stack:

        def make(key: str = "none", **settings: Any) -> Door:
            return stack.enter_context(_opened(server_loop, OpenAISettings(**settings), key))

        yield make


def answer(text: str, index: int = 0) -> list[Any]:
    """The events of one choice, without start and end."""
    return [Delta(index=index, text=text, token_ids=(1,)), Finished(index=index, reason="stop")]
