"""What only a real vLLM can show: the tokens, its gauges, its constraints, its death."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import (
    BackendFailed,
    ModelLoadFailed,
    PromptTooLong,
    UnsupportedField,
)
from themis_core.messages import (
    AdapterWeight,
    ChatMessage,
    Constraint,
    Delta,
    EmbedRequest,
    GenerateRequest,
    NamedTool,
    SamplingParams,
    Tool,
)
from themis_testkit.conformance.base import begin, complete, eventually
from themis_testkit.conformance.embeddings import likeness
from themis_testkit.conformance.tools import joined
from themis_testkit.plugin import ReferenceSettings
from themis_testkit.reference.backend import create as create_reference
from themis_vllm_remote.create import remote
from themis_vllm_remote.settings import VllmSettings

from .conftest import EngineHost, Hosted
from .servers import ADAPTERS, MODEL, Server, serving

PROMPTS = [
    "What is the capital of France?",
    "The",
    "Grüße, 日本 🎉",
    "Once upon a time there was a small fox who lived at the edge of a wood, and",
]
MESSAGES = (ChatMessage(role="user", content="What is the capital of France?"),)


@asynccontextmanager
async def started(backend: Backend) -> AsyncIterator[Backend]:
    await backend.start()
    try:
        yield backend
    finally:
        await backend.aclose()


def http(server: Server, **settings: Any) -> Backend:
    return remote(VllmSettings(endpoint=f"http://127.0.0.1:{server.port}", **settings))


def grpc(server: Server, **settings: Any) -> Backend:
    return remote(VllmSettings(endpoint=f"grpc://127.0.0.1:{server.port}", **settings))


def greedy(tokens: int = 24, **given: Any) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0)
    return GenerateRequest(**({"sampling": sampling} | given))


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[int, ...]]:
    """The numpy reference's tokens: for texts, for messages, and under each adapter."""

    async def main() -> dict[str, tuple[int, ...]]:
        async with started(create_reference(ReferenceSettings(path=MODEL))) as backend:
            found = {}
            for prompt in PROMPTS:
                answer = await complete(backend, greedy(prompt=prompt))
                found[prompt] = answer.choices[0].token_ids
            answer = await complete(backend, greedy(messages=MESSAGES))
            found["messages"] = answer.choices[0].token_ids
            for name, path in ADAPTERS:
                await backend.load_adapter(name, path)
                weight = (AdapterWeight(name=name),)
                answer = await complete(backend, greedy(prompt=PROMPTS[0], adapters=weight))
                found[name] = answer.choices[0].token_ids
            return found

    return asyncio.run(main())


@pytest.mark.parametrize("way", ["http", "http+tokenizer", "grpc", "unix", "shm"])
def test_greedy_tokens_are_the_references(
    way: str, expected: dict[str, tuple[int, ...]], request: pytest.FixtureRequest
) -> None:
    """Over every way, texts and messages, with and without an adapter."""
    assert len(set(expected.values())) == len(expected)

    async def main() -> None:
        async with started(_backend(way, request)) as backend:
            for prompt in PROMPTS:
                answer = await complete(backend, greedy(prompt=prompt))
                assert answer.choices[0].token_ids == expected[prompt], prompt
            answer = await complete(backend, greedy(messages=MESSAGES))
            assert answer.choices[0].token_ids == expected["messages"]
            if way == "grpc":
                with pytest.raises(UnsupportedField):
                    await backend.load_adapter(*ADAPTERS[0])
                return
            for left in await backend.adapters():  # By another test, on the same server.
                await backend.unload_adapter(left.name)
            for name, path in ADAPTERS:
                await backend.load_adapter(name, path)
                weight = (AdapterWeight(name=name),)
                answer = await complete(backend, greedy(prompt=PROMPTS[0], adapters=weight))
                assert answer.choices[0].token_ids == expected[name], name
            for name, _ in ADAPTERS:
                await backend.unload_adapter(name)

    asyncio.run(main())


def _backend(way: str, request: pytest.FixtureRequest) -> Backend:
    if way in ("unix", "shm"):
        host: EngineHost = request.getfixturevalue("engine_host")
        return Hosted(host, way)
    if way == "grpc":
        return grpc(request.getfixturevalue("grpc_server"))
    tokenizer = MODEL if way == "http+tokenizer" else ""
    return http(request.getfixturevalue("http_server"), tokenizer=tokenizer)


def test_messages_that_are_too_long(http_server: Server) -> None:
    """Only the server can count them; it would shorten the answer, or say just that it cannot."""

    async def main() -> None:
        async with started(http(http_server)) as backend:
            text = " ".join(map(str, range(3000)))
            for request, field in (
                (greedy(messages=(ChatMessage(role="user", content=text),)), "prompt"),
                (greedy(tokens=2040, messages=MESSAGES), "sampling.max_tokens"),
            ):
                with pytest.raises(PromptTooLong) as caught:
                    await complete(backend, request)
                assert caught.value.field == field

    asyncio.run(main())


@pytest.mark.parametrize("how", ["close", "cancel", "timeout", "backend"])
def test_stopping_reaches_vllm(http_server: Server, how: str) -> None:
    """Its gauge of running requests goes to 0, and it has not computed the whole answer."""

    async def running(count: int) -> bool:
        found = await asyncio.to_thread(http_server.metric, "vllm:num_requests_running")
        return found == count

    async def main() -> None:
        before = http_server.metric("vllm:generation_tokens_total")
        sampling = SamplingParams(max_tokens=1900, temperature=0.0, ignore_eos=True)
        request = GenerateRequest(prompt="The", sampling=sampling)
        async with started(http(http_server)) as backend:
            if how == "timeout":
                request = msgspec.structs.replace(request, timeout=0.5)
            events = await begin(backend, request)
            await eventually(lambda: running(1), what="vLLM runs it")
            if how == "close":
                await events.aclose()
            elif how == "backend":
                await backend.aclose()
            else:
                task = asyncio.ensure_future(_exhaust(events))
                if how == "cancel":
                    await asyncio.sleep(0)
                    task.cancel()
                await asyncio.wait([task])
            await eventually(lambda: running(0), what="vLLM has stopped")
            await events.aclose()
        after = http_server.metric("vllm:generation_tokens_total")
        assert 0 < after - before < 1900

    asyncio.run(main())


async def _exhaust(events: Any) -> None:
    async for _ in events:
        pass


_SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"enum": [1, 2]}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
_NATIVE: dict[str, tuple[Constraint, Callable[[str], Any]]] = {
    "json": (Constraint(kind="json_schema", value=_SCHEMA), json.loads),
    "regex": (
        Constraint(kind="regex", value="[a-f]{2}-[0-9]{2}"),
        lambda text: re.fullmatch("[a-f]{2}-[0-9]{2}", text),
    ),
    "choice": (Constraint(kind="choice", value=["grün", "rot"]), {"grün", "rot"}.__contains__),
    "gbnf": (
        Constraint(kind="gbnf", value='root ::= "a" [0-9] "b"'),
        lambda text: re.fullmatch("a[0-9]b", text),
    ),
}


NATIVE = [
    "--structured-outputs-config",
    '{"backend": "xgrammar", "disable_any_whitespace": true}',
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
]


@pytest.fixture(scope="module")
def native_server(folder: Path) -> Any:
    """As most servers are started: constraints by xgrammar, without a route for token ids."""
    with serving(NATIVE, folder / "native.log") as server:
        yield server


@pytest.mark.parametrize("kind", _NATIVE)
def test_vllms_own_structured_outputs(native_server: Server, kind: str) -> None:
    constraint, belongs = _NATIVE[kind]

    async def main() -> None:
        for settings in ({}, {"tokenizer": MODEL}):
            async with started(http(native_server, **settings)) as backend:
                request = greedy(tokens=120, prompt="The", constraint=constraint)
                choice = (await complete(backend, request)).choices[0]
                assert choice.finish_reason == "stop"
                assert belongs(choice.text), choice.text

    asyncio.run(main())


@pytest.mark.parametrize("choice", ["required", NamedTool(name="get_time")], ids=str)
def test_forced_calls_by_the_servers_own_parser(native_server: Server, choice: Any) -> None:
    schema = {"city": {"type": "string", "maxLength": 12}}
    parameters = {"type": "object", "properties": schema, "required": ["city"]}
    tools = tuple(
        Tool(name=name, parameters=parameters | {"additionalProperties": False})
        for name in ("get_weather", "get_time")
    )

    async def main() -> None:
        async with started(http(native_server)) as backend:
            request = greedy(
                tokens=200,
                messages=MESSAGES,
                tools=tools,
                tool_choice=choice,
                parallel_tool_calls=False,
            )
            events = [event async for event in backend.generate(request)]
            (call,) = joined(events)
            assert call.name in {"get_weather", "get_time"}
            assert list(json.loads(call.arguments)) == ["city"]

    asyncio.run(main())


def test_a_server_without_llguidance_is_found_out(native_server: Server) -> None:
    async def main() -> None:
        backend = http(native_server, structured="guidance")
        with pytest.raises(ModelLoadFailed, match="structured-outputs-config"):
            await backend.start()
        await backend.aclose()

    asyncio.run(main())


def test_embeddings_over_http_and_grpc(folder: Path) -> None:
    """The same unit vectors over both, for texts and for token ids."""

    pooling = ["--runner", "pooling"]
    # Both at once: most of starting is waiting for one core.
    one = Server(pooling, folder / "pooling.log")
    other = Server([*pooling, "--grpc"], folder / "pooling-grpc.log")

    async def main() -> None:
        found = []
        for backend in (http(one), grpc(other)):
            async with started(backend):
                assert backend.info.capabilities.embed
                assert not backend.info.capabilities.generate
                ids = await backend.tokenize(PROMPTS[1])
                texts: tuple[str | tuple[int, ...], ...] = (*PROMPTS, ids)
                response = await backend.embed(EmbedRequest(inputs=texts))
                found.append(response.embeddings)
                assert likeness(response.embeddings[1], response.embeddings[-1]) > 0.9999
                assert response.usage.prompt_tokens > len(texts)
        for first, second in zip(*found, strict=True):
            assert likeness(first, second) > 0.9999
            assert abs(likeness(first, first) - 1) < 1e-4

    try:
        one.wait_http()
        other.wait_port()
        asyncio.run(main())
    finally:
        one.end()
        other.end()


def test_an_engine_that_is_killed_and_a_server_that_comes_back(
    native_server: Server, folder: Path
) -> None:
    """In mid-stream: an error; with `resume` and a server that is started again, the rest."""
    server = native_server
    sampling = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    request = GenerateRequest(prompt="The", sampling=sampling)

    async def main() -> None:
        patient = http(server, start_timeout=150.0, resume=True)
        async with started(patient) as backend, started(http(server, retries=0)) as impatient:
            whole = (await complete(backend, request)).choices[0].token_ids
            doomed = await begin(impatient, request)
            seen: list[int] = []
            async with aclosing(await begin(backend, request)) as events:
                os.kill(server.engine(), signal.SIGKILL)
                with pytest.raises(BackendFailed):
                    await _exhaust(doomed)
                await asyncio.to_thread(server.end)
                again = Server(NATIVE, folder / "again.log", server.port)
                try:
                    async for event in events:
                        seen += event.token_ids if isinstance(event, Delta) else ()
                    # `begin` has taken the first delta.
                    assert tuple(seen) == whole[-len(seen) :]
                    assert len(whole) - 8 < len(seen) < len(whole)
                    assert (await complete(backend, request)).choices[0].token_ids == whole
                finally:
                    await asyncio.to_thread(again.end)

    asyncio.run(main())
