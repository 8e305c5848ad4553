"""Every backend behind every transport: what a caller sees is what it sees inline.

One instance of a backend is served over all transports at once, and asked the same through each.
The conformance suites of the plugins check each by itself; this compares them.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest

import themis_tiny_model
from themis_core.contracts import Backend
from themis_core.errors import BackendClosed, ThemisError
from themis_core.hooks import TransportPlugin
from themis_core.messages import (
    AdapterWeight,
    ChatMessage,
    Completion,
    Constraint,
    Delta,
    Done,
    EmbedRequest,
    Finished,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    Started,
    Tool,
)
from themis_core.plugins import Registry, make
from themis_core.runtime.gather import Gathering
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_testkit.conformance import eventually
from themis_testkit.plugin import ReferenceSettings
from themis_testkit.reference.backend import create as create_reference

TRANSPORTS = {
    "shm": "shm://{folder}/shm.sock",
    "unix": "unix://{folder}/unix.sock",
    "grpc": "grpc://127.0.0.1:0",
    "grpc per request": "grpc://127.0.0.1:0?per_request=1",
}


def _echo() -> Backend:
    return EchoBackend(EchoSettings(delay=0.001))


def _reference() -> Backend:
    return create_reference(ReferenceSettings(path=str(themis_tiny_model.path("hf"))))


def _llamacpp() -> Backend:
    pytest.importorskip("llama_cpp")
    from themis_llamacpp.backend import create
    from themis_llamacpp.settings import LlamaCppSettings

    path = str(themis_tiny_model.path("gguf-f16"))
    return create(LlamaCppSettings(path=path, threads=1, parallel=4))


def _onnx() -> Backend:
    pytest.importorskip("onnxruntime")
    from themis_onnx.backend import create
    from themis_onnx.settings import OnnxSettings

    path = str(themis_tiny_model.path("hf"))
    return create(OnnxSettings(path=path, threads=1, parallel=4))


BACKENDS: dict[str, tuple[Callable[[], Backend], str]] = {
    "echo": (_echo, ""),
    "reference": (_reference, "peft"),
    "llamacpp": (_llamacpp, "gguf"),
    "onnx": (_onnx, "peft"),
}


class Views:
    """A backend, inline and over each transport."""

    def __init__(self, inline: Backend, remote: dict[str, Backend], adapters: str) -> None:
        self.inline = inline
        self.remote = remote
        self.fields = inline.info.capabilities.request_fields
        self.adapter = ""
        if adapters and inline.info.capabilities.adapters:
            self.adapter = str(themis_tiny_model.path(f"lora-json-{adapters}"))

    def request(self, prompt: Any = "The capital of France", **keys: Any) -> GenerateRequest:
        """Greedy, of a few tokens, where that can be asked for."""
        sampling: dict[str, Any] = {"max_tokens": 12, **keys.pop("sampling", {})}
        if "sampling.temperature" in self.fields:
            sampling.setdefault("temperature", 0.0)
        given = {"prompt": prompt} if "messages" not in keys else {}
        return GenerateRequest(**given, sampling=SamplingParams(**sampling), **keys)


@asynccontextmanager
async def views(name: str, folder: str) -> AsyncGenerator[Views, None]:
    create, adapters = BACKENDS[name]
    registry = Registry()
    inline = create()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(inline.aclose)
        await inline.start()
        remote: dict[str, Backend] = {}
        for label, url in TRANSPORTS.items():
            found = registry.find("transports", url.partition(":")[0], TransportPlugin)
            transport = make(found, found.settings())
            server = await transport.serve(inline, url.format(folder=folder))
            stack.push_async_callback(server.aclose)
            query = url[url.index("?") :] if "?" in url else ""
            backend: Backend = transport.connect(server.url + query)
            stack.push_async_callback(backend.aclose)
            await backend.start()
            remote[label] = backend
        yield Views(inline, remote, adapters)


class Stage:
    """The event loop of a module's tests of one backend, which stays started between them."""

    def __init__(self, name: str, folder: str) -> None:
        self._runner = asyncio.Runner()
        self._manager = views(name, folder)
        self.views = self._runner.run(self._manager.__aenter__())

    def run(self, check: Callable[[Views], Coroutine[Any, Any, None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(60):
                await check(self.views)

        self._runner.run(limited())

    def close(self) -> None:
        self._runner.run(self._manager.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module", params=list(BACKENDS))
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    folder = tempfile.mkdtemp(prefix="themis-")
    found = Stage(request.param, folder)
    yield found
    found.close()
    shutil.rmtree(folder)


async def outcome(backend: Backend, request: GenerateRequest) -> Completion | ThemisError:
    """The whole answer, its events in a valid order, or the error."""
    gathering = Gathering()
    events: list[GenerateEvent] = []
    try:
        async with aclosing(backend.generate(request)) as stream:
            async for event in stream:
                gathering.add(event)
                events.append(event)
    except ThemisError as error:
        return error
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Done)
    middle = events[1:-1]
    assert all(isinstance(event, Delta | Finished) for event in middle)
    found = gathering.completion(request.request_id, request.model)
    # What the cache had depends on who asked before, and ids of tool calls are drawn anew.
    usage = msgspec.structs.replace(found.usage, cached_tokens=0)
    choices = tuple(
        msgspec.structs.replace(
            choice,
            tool_calls=tuple(msgspec.structs.replace(c, id="id") for c in choice.tool_calls),
        )
        for choice in found.choices
    )
    return msgspec.structs.replace(found, usage=usage, choices=choices)


async def alike(views: Views, ask: Callable[[Backend], Coroutine[Any, Any, Any]]) -> Any:
    """The result or error of asking inline, which is that of asking over each transport."""
    expected = await _result(ask, views.inline)
    for label, backend in views.remote.items():
        found = await _result(ask, backend)
        if isinstance(expected, ThemisError):
            assert isinstance(found, ThemisError), (label, found)
            assert found.to_dict() == expected.to_dict(), label
            assert type(found) is type(expected), label
        else:
            assert found == expected, label
    return expected


async def _result(ask: Callable[[Backend], Coroutine[Any, Any, Any]], backend: Backend) -> Any:
    try:
        return await ask(backend)
    except ThemisError as error:
        return error


def test_answers(stage: Stage) -> None:
    """Text, token ids, messages, log-probabilities, choices, constraints, tools, stop strings."""

    async def check(views: Views) -> None:
        asked = [
            views.request(),
            views.request("été 東京 🙂 "),
            views.request(sampling={"stop": ("e",)}),
            views.request("a b c", sampling={"max_tokens": 1}),
        ]
        if "prompt_token_ids" in views.fields:
            asked.append(views.request(await views.inline.tokenize("to be or not")))
        if "messages" in views.fields:
            turns = (ChatMessage(role="user", content="What is the capital of France?"),)
            asked.append(views.request(messages=turns))
            if "tools" in views.fields:
                tool = Tool(name="f", parameters={"type": "object", "properties": {}})
                asked.append(views.request(messages=turns, tools=(tool,), tool_choice="required"))
        if "sampling.logprobs" in views.fields:
            asked.append(views.request(sampling={"logprobs": 3}))
        if "sampling.n" in views.fields and "sampling.seed" in views.fields:
            asked.append(views.request(sampling={"n": 3, "seed": 7, "temperature": 1.0}))
        if "constraint" in views.fields:
            constraint = Constraint(kind="choice", value=["Berlin", "Rome"])
            asked.append(views.request(constraint=constraint))
        for request in asked:
            found = await alike(views, partial(outcome, request=request))
            assert isinstance(found, Completion), (request, found)

    stage.run(check)


def test_errors(stage: Stage) -> None:
    async def check(views: Views) -> None:
        length = views.inline.info.context_length
        asked = [views.request("word " * (2 * length)), views.request(timeout=1e-9)]
        if "prompt_token_ids" in views.fields:
            asked.append(views.request((10**7,)))
        if "constraint" in views.fields:
            asked.append(views.request(constraint=Constraint(kind="regex", value="(")))
        if "adapters" in views.fields:
            asked.append(views.request(adapters=(AdapterWeight(name="nobody"),)))
        for request in asked:
            found = await alike(views, partial(outcome, request=request))
            assert isinstance(found, ThemisError), request

    stage.run(check)


def test_other_calls(stage: Stage) -> None:
    """Facts, token ids and text; vectors, or that there are none."""

    async def check(views: Views) -> None:
        for backend in views.remote.values():
            assert backend.info == views.inline.info
        ids = await alike(views, lambda backend: backend.tokenize("to be or not 🙂"))
        text = await alike(views, lambda backend: backend.detokenize(ids))
        assert "to be" in text
        await alike(views, lambda backend: backend.detokenize(ids[:-1]))

        async def embed(backend: Backend) -> list[tuple[float, ...]]:
            response = await backend.embed(EmbedRequest(inputs=("one", "two")))
            return [tuple(vector) for vector in response.embeddings]

        await alike(views, embed)
        await alike(views, lambda backend: backend.unload_adapter("nobody"))

    stage.run(check)


def test_adapters(stage: Stage) -> None:
    """Loaded through one, used through all."""

    async def check(views: Views) -> None:
        if not views.adapter:
            pytest.skip("the backend has no adapters")
        for loader in views.remote.values():
            await loader.load_adapter("json", views.adapter, "answers in JSON")
            await alike(views, lambda backend: backend.adapters())
            request = views.request(adapters=(AdapterWeight(name="json", weight=0.5),))
            found = await alike(views, partial(outcome, request=request))
            assert isinstance(found, Completion)
            await loader.unload_adapter("json")
            assert await alike(views, lambda backend: backend.adapters()) == ()

    stage.run(check)


def test_cancelling(stage: Stage) -> None:
    """A reader who leaves stops the generation, wherever it sits."""

    async def check(views: Views) -> None:
        sampling: dict[str, Any] = {"max_tokens": 400}
        if "sampling.ignore_eos" in views.fields:
            sampling["ignore_eos"] = True
        for label, backend in {"inline": views.inline, **views.remote}.items():
            before = (await views.inline.stats()).cancelled
            events = backend.generate(views.request("word " * 60, sampling=sampling))
            async for event in events:
                if isinstance(event, Delta):
                    break
            await events.aclose()

            async def gone(before: int = before) -> bool:
                stats = await views.inline.stats()
                return stats.running == stats.waiting == 0 and stats.cancelled == before + 1

            await eventually(gone, what=f"the request over {label} is cancelled")

    stage.run(check)


def test_closing_the_client_ends_its_requests_and_no_other() -> None:
    """What is closed is the transport; one backend is enough."""

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="themis-") as folder:
            async with views("echo", folder) as found:
                long = found.request("word " * 200, sampling={"max_tokens": 1000})
                others = [asyncio.create_task(outcome(b, long)) for b in found.remote.values()]
                for backend in found.remote.values():
                    events = backend.generate(long)
                    await anext(events)
                    await backend.aclose()
                    with pytest.raises(BackendClosed):
                        await _exhaust(events)
                assert isinstance(await outcome(found.inline, long), Completion)
                for ended in await asyncio.gather(*others):
                    assert isinstance(ended, BackendClosed)

    asyncio.run(main())


async def _exhaust(events: AsyncGenerator[GenerateEvent, None]) -> None:
    async for _ in events:
        pass
