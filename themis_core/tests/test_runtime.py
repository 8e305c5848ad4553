"""The way of a request: each step in its place, and nothing left behind when it is cut short."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

import themis_core
from themis_core.contracts import Quota, Validator
from themis_core.errors import (
    BackendClosed,
    DeadlineExceeded,
    ModelLoadFailed,
    ModelNotFound,
    QuotaExceeded,
    RequestRejected,
    ThemisError,
    UnsupportedField,
)
from themis_core.messages import (
    OPTIONAL_FIELDS,
    AdapterWeight,
    BackendStats,
    Capabilities,
    ChatMessage,
    Constraint,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    NamedTool,
    SamplingParams,
    Started,
    Tool,
    Usage,
)
from themis_core.runtime import ModelSource, Runtime
from themis_core.runtime.fields import used_fields


class Words:
    """A backend that says its words; records what happens to it."""

    def __init__(self, *words: str, fields: frozenset[str] = OPTIONAL_FIELDS) -> None:
        self.words = words
        self.info = ModelInfo(backend="words", capabilities=Capabilities(request_fields=fields))
        self.log: list[str] = []
        self.start_gate: asyncio.Event | None = None
        self.start_error: ThemisError | None = None
        self.stall: asyncio.Event | None = None
        self.seen: list[GenerateRequest] = []
        self.called = asyncio.Event()

    async def start(self) -> None:
        self.log.append("start")
        if self.start_gate is not None:
            await self.start_gate.wait()
        if self.start_error is not None:
            raise self.start_error

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        self.seen.append(request)
        self.called.set()
        try:
            yield Started(prompt_tokens=1)
            for word in self.words:
                yield Delta(text=word, token_ids=(1,))
            if self.stall is not None:
                await self.stall.wait()
            yield Finished(reason="stop")
            yield Done(usage=Usage(prompt_tokens=1, completion_tokens=len(self.words)))
        finally:
            self.log.append("generated")

    async def stats(self) -> BackendStats:
        return BackendStats(requests=len(self.seen))

    async def aclose(self) -> None:
        self.log.append("aclose")


def runtime(backend: Words, **arguments: Any) -> Runtime:
    source = ModelSource(backend="words", make=lambda: backend, aliases=("w",))  # type: ignore[arg-type, return-value]
    return Runtime({"words": source}, default="words", **arguments)


ASK = GenerateRequest(prompt="hi")


def run(body: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(body(), 20))


def test_default_alias_and_unknown_names() -> None:
    async def body() -> None:
        async with runtime(Words("a", "b")) as r:
            for name in ("", "words", "w"):
                completion = await r.complete(GenerateRequest(model=name, prompt="hi"))
                assert (completion.text, completion.model) == ("ab", "words")
            with pytest.raises(ModelNotFound, match="Did you mean 'words'"):
                await r.complete(GenerateRequest(model="wrods", prompt="hi"))

    run(body)


def test_a_model_is_loaded_once_and_late() -> None:
    async def body() -> None:
        backend = Words("x")
        backend.start_gate = asyncio.Event()
        async with runtime(backend) as r:
            assert r.models()[0].state == "unloaded"
            waiting = [asyncio.create_task(r.complete(ASK)) for _ in range(5)]
            for _ in range(3):
                await asyncio.sleep(0)
            assert r.models()[0].state == "loading"
            waiting[0].cancel()  # Who leaves must not stop the loading for the others.
            backend.start_gate.set()
            results = await asyncio.gather(*waiting[1:])
            assert [c.text for c in results] == ["x"] * 4
            assert r.models()[0].state == "ready"
        assert backend.log.count("start") == 1
        assert backend.log[-1] == "aclose"

    run(body)


def test_a_failed_load_is_told_and_tried_again() -> None:
    async def body() -> None:
        backend = Words("x")
        backend.start_error = ModelLoadFailed("no memory")
        async with runtime(backend) as r:
            with pytest.raises(ModelLoadFailed):
                await r.complete(ASK)
            assert (r.models()[0].state, r.models()[0].error) == ("failed", "no memory")
            backend.start_error = None
            assert (await r.complete(ASK)).text == "x"

    run(body)


def test_preloading_fails_the_start() -> None:
    async def body() -> None:
        backend = Words()
        backend.start_error = ModelLoadFailed("no memory")
        source = ModelSource(backend="words", make=lambda: backend, preload=True)  # type: ignore[arg-type, return-value]
        with pytest.raises(ModelLoadFailed):
            async with Runtime({"words": source}, default="words"):
                pass
        assert backend.log == ["start", "aclose"]

    run(body)


def test_leaving_the_iterator_closes_the_backends_generator() -> None:
    async def body() -> None:
        backend = Words("a")
        backend.stall = asyncio.Event()
        async with runtime(backend) as r:
            events = r.generate(ASK)
            assert isinstance(await anext(events), Started)
            await events.aclose()
            assert backend.log[-1] == "generated"
            backend.called.clear()
            task = asyncio.create_task(r.complete(ASK))
            await backend.called.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert backend.log.count("generated") == 2

    run(body)


FIELD_VALUES: dict[str, dict[str, Any]] = {
    "prompt_token_ids": {"prompt": (1, 2)},
    "messages": {"prompt": None, "messages": (ChatMessage(role="user", content="hi"),)},
    "tools": {
        "prompt": None,
        "messages": (ChatMessage(role="user", content="hi"),),
        "tools": (Tool(name="t"),),
    },
    "tool_choice": {
        "prompt": None,
        "messages": (ChatMessage(role="user", content="hi"),),
        "tools": (Tool(name="t"),),
        "tool_choice": NamedTool(name="t"),
    },
    "parallel_tool_calls": {"parallel_tool_calls": False},
    "template_options": {
        "prompt": None,
        "messages": (ChatMessage(role="user", content="hi"),),
        "template_options": {"enable_thinking": False},
    },
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 8},
    "cache_salt": {"cache_salt": "pepper"},
    "resume_token_ids": {"resume_token_ids": (1, 2)},
    "constraint": {"constraint": Constraint(kind="regex", value="a")},
    "adapters": {"adapters": (AdapterWeight(name="a"),)},
    "priority": {"priority": 1},
}
SAMPLING_VALUES: dict[str, Any] = {
    "min_tokens": 1,
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logit_bias": {1: 1.0},
    "seed": 1,
    "n": 2,
    "logprobs": 1,
    "stop_token_ids": (1,),
    "ignore_eos": True,
}


@pytest.mark.parametrize("field", sorted(OPTIONAL_FIELDS))
def test_a_field_that_the_backend_does_not_declare_is_refused(field: str) -> None:
    if field.startswith("sampling."):
        name = field.removeprefix("sampling.")
        request = GenerateRequest(
            prompt="hi", sampling=SamplingParams(**{name: SAMPLING_VALUES[name]})
        )
    else:
        request = GenerateRequest(**{"prompt": "hi"} | FIELD_VALUES[field])
    assert field in used_fields(request)

    async def body() -> None:
        backend = Words("x", fields=OPTIONAL_FIELDS - {field})
        async with runtime(backend) as r:
            with pytest.raises(UnsupportedField) as caught:
                await r.complete(request)
            assert caught.value.field == field
            assert not backend.seen
        async with runtime(Words("x")) as r:
            assert (await r.complete(request)).text == "x"

    run(body)


def test_defaults_use_no_optional_field() -> None:
    assert used_fields(ASK) == set()


class Shout(Validator):
    """Shouts, and holds the last character back."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.held = ""
        self.closed = 0

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        if self.refuse and self.refuse in str(request.prompt):
            raise RequestRejected("not this")
        return msgspec.structs.replace(request, prompt=f"{request.prompt}!")

    def check_output(self, request: GenerateRequest) -> Shout:
        return self

    def push(self, text: str) -> str:
        text = self.held + text.upper()
        text, self.held = text[:-1], text[-1:]
        return text

    def finish(self) -> str:
        held, self.held = self.held, ""
        return held + "."

    async def aclose(self) -> None:
        self.closed += 1


class Counter(Quota):
    def __init__(self, limit: int = 1) -> None:
        self.left = limit
        self.log: list[object] = []

    async def reserve(self, request: GenerateRequest) -> Counter:
        if not self.left:
            raise QuotaExceeded("nothing left")
        self.left -= 1
        return self

    async def settle(self, usage: Usage) -> None:
        self.log.append(usage)
        self.left += 1

    async def release(self) -> None:
        self.log.append("release")
        self.left += 1

    async def aclose(self) -> None:
        self.log.append("aclose")


def test_validators_see_prompt_and_answer() -> None:
    async def body() -> None:
        backend, shout = Words("ab", "c"), Shout(refuse="bad")
        async with runtime(backend, validators=[shout]) as r:
            assert (await r.complete(ASK)).text == "ABC."
            assert backend.seen[0].prompt == "hi!"
            with pytest.raises(RequestRejected):
                await r.complete(GenerateRequest(prompt="bad"))
            assert len(backend.seen) == 1
        assert shout.closed == 1

    run(body)


def test_validators_are_chained_to_the_last_character() -> None:
    async def body() -> None:
        async with runtime(Words("ab"), validators=[Shout(), Shout()]) as r:
            assert (await r.complete(ASK)).text == "AB.."

    run(body)


def test_the_quota_is_settled_or_released_exactly_once() -> None:
    async def body() -> None:
        quota = Counter()
        backend = Words("a", "b")
        async with runtime(backend, quota=quota) as r:
            await r.complete(ASK)
            assert quota.log == [Usage(prompt_tokens=1, completion_tokens=2)]
            async with aclosing(r.generate(ASK)) as events:
                await anext(events)
                with pytest.raises(QuotaExceeded):
                    await r.complete(ASK)
            assert quota.log[1:] == ["release"]
            # Somebody who stops reading at the last event has still paid.
            async for event in r.generate(ASK):
                if isinstance(event, Done):
                    break
            assert len(quota.log) == 3
            assert isinstance(quota.log[2], Usage)
        assert quota.log[-1] == "aclose"

    run(body)


def test_a_deadline_covers_the_loading() -> None:
    async def body() -> None:
        backend = Words("x")
        backend.start_gate = asyncio.Event()
        async with runtime(backend) as r:
            with pytest.raises(DeadlineExceeded):
                await r.complete(GenerateRequest(prompt="hi", timeout=0.01))
            backend.start_gate.set()
            await r.complete(GenerateRequest(prompt="hi", timeout=60))
            assert backend.seen[0].timeout is not None
            assert backend.seen[0].timeout < 60

    run(body)


def test_a_closed_runtime_says_so() -> None:
    async def body() -> None:
        r = runtime(Words("x"))
        async with r:
            pass
        await r.aclose()
        with pytest.raises(BackendClosed):
            await r.complete(ASK)

    run(body)


def test_open_with_backends_at_hand() -> None:
    async def body() -> None:
        backend: Any = Words("x")
        async with themis_core.open(backends={"mine": backend}) as r:
            assert (await r.complete(ASK)).model == "mine"
            assert (await r.stats())["mine"].requests == 1
        with pytest.raises(TypeError):
            themis_core.open("a.toml", backends={"mine": backend})

    run(body)


def test_the_blocking_runtime() -> None:
    backend: Any = Words("a", "b")
    with themis_core.open_blocking(backends={"mine": backend}) as r:
        assert r.complete(ASK).text == "ab"
        events = r.generate(ASK)
        next(events)
        events.close()
        assert backend.log.count("generated") == 2
        assert [type(e).__name__ for e in r.generate(ASK)][-1] == "Done"
        abandoned = r.generate(ASK)
        next(abandoned)
    assert backend.log[-1] == "aclose"
    abandoned.close()
    with pytest.raises(BackendClosed):
        r.complete(ASK)


def test_a_failing_listener_does_not_fail_the_model(
    shelf: Any, write_config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.install(
        "loud",
        """
from themis_core.hooks import BackendPlugin, hookimpl
from themis_core.messages import ModelInfo
heard = []

@hookimpl
def themis_backends():
    return [BackendPlugin(name="{name}", help="", factory="{module}:Silent")]

@hookimpl
def themis_model_started(model, info):
    heard.append(model)
    raise RuntimeError("listening badly")

@hookimpl
def themis_model_stopped(model):
    heard.append("-" + model)

class Silent:
    info = ModelInfo(backend="silent")
    def __init__(self, settings): pass
    async def start(self): pass
    async def aclose(self): pass
""",
    )
    path = write_config('[models.a]\nbackend = "loud"\npreload = true\n')

    async def body() -> None:
        async with themis_core.open(path, registry=shelf.registry()) as r:
            assert r.models()[0].state == "ready"

    run(body)
    assert sys.modules["shelf_dist_loud_loud"].heard == ["a", "-a"]
    assert "listening badly" in caplog.text
