"""Models come, fail, come again and go; nobody waits in vain and nothing stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

import themis_core
from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    ModelLoadFailed,
    ThemisError,
)
from themis_core.messages import AdapterWeight, GenerateRequest, ModelInfo, Started
from themis_core.runtime import ModelSource, Runtime
from themis_testkit.fakes import FakeQuota, FakeValidator, Hold, ScriptedBackend, Step, say

ASK = GenerateRequest(prompt="hi")
FATAL = BackendFailed("The engine has died.")


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


class Mortal(ScriptedBackend):
    """Dies for good at a request with the prompt "die", as an engine whose thread has ended."""

    def __init__(self, start_error: ThemisError | None = None) -> None:
        super().__init__(self._play, start_error=start_error)
        self.failure: ThemisError | None = None
        self.gate: asyncio.Event | None = None
        self.closing = asyncio.Event()
        self.close_error: Exception | None = None
        self.close_gate: asyncio.Event | None = None

    def _play(self, request: GenerateRequest) -> Iterable[Step]:
        if request.prompt == "stumble":
            return [Started(prompt_tokens=1), BackendFailed("This request alone failed.")]
        if request.prompt == "die":
            self.failure = FATAL
            return [Started(prompt_tokens=1), FATAL]
        return say("alive")

    @property
    def info(self) -> ModelInfo:
        if self.failure is not None:
            raise self.failure
        return super().info

    async def start(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        await super().start()

    async def aclose(self) -> None:
        self.closing.set()
        if self.close_gate is not None:
            await self.close_gate.wait()
        await super().aclose()
        if self.close_error is not None:
            raise self.close_error


class House:
    """A runtime of one model; `made` are the backends that it has had, `heard` the events."""

    def __init__(self, *prepared: Mortal) -> None:
        self.prepared = list(prepared)
        self.made: list[Mortal] = []
        self.heard: list[str] = []
        source = ModelSource(backend="mortal", make=self._make)
        self.runtime = Runtime(
            {"m": source}, default="m", on_event=lambda hook, model, _: self.heard.append(hook)
        )

    def _make(self) -> Mortal:
        self.made.append(self.prepared.pop(0) if self.prepared else Mortal())
        return self.made[-1]

    def state(self) -> tuple[str, str | None]:
        (status,) = self.runtime.models()
        return status.state, status.error

    async def ask(self, prompt: str = "hi") -> str:
        return (await self.runtime.complete(GenerateRequest(prompt=prompt))).text


STARTED, STOPPED = "themis_model_started", "themis_model_stopped"


def test_a_dead_backend_is_closed_and_the_next_request_gets_a_new_one() -> None:
    async def body() -> None:
        house = House()
        async with house.runtime as runtime:
            assert await house.ask() == "alive"
            with pytest.raises(BackendFailed, match="engine has died"):
                await house.ask("die")
            assert house.state() == ("failed", "The engine has died.")
            assert await runtime.stats() == {}
            await house.made[0].closing.wait()  # At once, not when it is next asked for.
            assert await house.ask() == "alive"
            assert house.state() == ("ready", None)
            assert [backend.closes for backend in house.made] == [1, 0]
        assert [backend.closes for backend in house.made] == [1, 1]
        assert house.heard == [STARTED, STOPPED, STARTED, STOPPED]

    run(body)


def test_one_that_died_between_requests_is_found_before_the_next() -> None:
    async def body() -> None:
        house = House()
        async with house.runtime as runtime:
            await house.ask()
            house.made[0].failure = FATAL
            assert house.state() == ("failed", "The engine has died.")
            answers = await asyncio.gather(*(house.ask() for _ in range(5)))
            assert answers == ["alive"] * 5
            assert len(house.made) == 2
            house.made[1].failure = FATAL
            assert (await runtime.model_info()).backend == "scripted"
            assert [backend.closes for backend in house.made] == [1, 1, 0]

    run(body)


def test_other_calls_find_it_out_too() -> None:
    class Dying(Mortal):
        async def adapters(self) -> tuple[AdapterWeight, ...]:
            self.failure = FATAL
            raise FATAL

    async def body() -> None:
        house = House(Dying())
        async with house.runtime as runtime:
            with pytest.raises(BackendFailed):
                await runtime.adapters()
            await house.made[0].closing.wait()
            assert house.state()[0] == "failed"

    run(body)


def test_a_request_that_fails_alone_leaves_the_model_as_it_is() -> None:
    async def body() -> None:
        house = House()
        async with house.runtime:
            with pytest.raises(BackendFailed, match="alone"):
                await house.ask("stumble")
            assert house.state() == ("ready", None)
            assert await house.ask() == "alive"
            assert (len(house.made), house.made[0].closes) == (1, 0)

    run(body)


def test_each_request_costs_a_model_that_cannot_come_back_one_loading() -> None:
    async def body() -> None:
        broken = [Mortal(start_error=ModelLoadFailed("no memory")) for _ in range(2)]
        house = House(Mortal(), *broken)
        async with house.runtime:
            with pytest.raises(BackendFailed):
                await house.ask("die")
            for made in (2, 3):
                with pytest.raises(ModelLoadFailed):
                    await house.ask()
                assert house.state() == ("failed", "no memory")
                assert len(house.made) == made
            assert await house.ask() == "alive"
        assert house.heard == [STARTED, STOPPED, STARTED, STOPPED]

    run(body)


def test_the_new_one_waits_until_the_dead_one_has_given_its_memory_back() -> None:
    async def body() -> None:
        house = House()
        async with house.runtime:
            await house.ask()
            house.made[0].close_gate = asyncio.Event()
            with pytest.raises(BackendFailed):
                await house.ask("die")
            waiting = asyncio.create_task(house.ask())
            await house.made[0].closing.wait()
            assert house.state()[0] == "loading"
            assert len(house.made) == 1
            house.made[0].close_gate.set()
            assert await waiting == "alive"

    run(body)


def test_a_dead_one_that_cannot_be_closed_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        house = House()
        async with house.runtime:
            await house.ask()
            house.made[0].close_error = RuntimeError("stuck")
            with pytest.raises(BackendFailed):
                await house.ask("die")
            assert await house.ask() == "alive"
        assert "RuntimeError: stuck" in caplog.text

    run(body)


def test_closing_waits_for_a_dead_one_that_is_being_closed() -> None:
    async def body() -> None:
        house = House()
        async with house.runtime:
            await house.ask()
            dead = house.made[0]
            dead.close_gate = asyncio.Event()
            with pytest.raises(BackendFailed):
                await house.ask("die")
            await dead.closing.wait()
            asyncio.get_running_loop().call_soon(dead.close_gate.set)
        assert dead.closes == 1

    run(body)


def test_a_backend_that_was_handed_over_is_not_started_a_second_time() -> None:
    async def body() -> None:
        backend = Mortal()
        async with themis_core.open(backends={"m": backend}) as runtime:
            with pytest.raises(BackendFailed):
                await runtime.complete(GenerateRequest(prompt="die"))
            for _ in range(2):
                with pytest.raises(ModelLoadFailed, match=r"only once: The engine has died\. Open"):
                    await runtime.complete(ASK)
            assert runtime.models()[0].error == "The engine has died."
        assert (backend.starts, backend.closes) == (1, 1)

    run(body)


def test_closing_tells_those_who_wait_for_a_load() -> None:
    async def body() -> None:
        slow = Mortal()
        slow.gate = asyncio.Event()
        house = House(slow)
        async with house.runtime as runtime:
            waiting = [asyncio.create_task(house.ask()) for _ in range(3)]
            waiting.append(asyncio.create_task(runtime.tokenize("hi")))  # type: ignore[arg-type]
            bounded = GenerateRequest(prompt="hi", timeout=60)
            waiting.append(asyncio.create_task(runtime.complete(bounded)))  # type: ignore[arg-type]
            while house.state()[0] != "loading":  # noqa: ASYNC110 - a few turns of the loop.
                await asyncio.sleep(0)
        for task in waiting:
            with pytest.raises(BackendClosed):
                await task
        assert (slow.starts, slow.closes) == (0, 1)

    run(body)


def test_a_waiting_caller_who_is_cancelled_takes_nothing_from_the_others() -> None:
    async def body() -> None:
        slow = Mortal()
        slow.gate = asyncio.Event()
        house = House(slow)
        async with house.runtime:
            leaving, staying = (asyncio.create_task(house.ask()) for _ in range(2))
            while house.state()[0] != "loading":  # noqa: ASYNC110
                await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            slow.gate.set()
            assert await staying == "alive"

    run(body)


def test_a_load_that_fails_when_everybody_has_left_is_remembered() -> None:
    async def body() -> None:
        slow = Mortal(start_error=ModelLoadFailed("no memory"))
        slow.gate = asyncio.Event()
        house = House(slow)
        async with house.runtime:
            leaving = asyncio.create_task(house.ask())
            while house.state()[0] != "loading":  # noqa: ASYNC110
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
            slow.gate.set()
            await slow.closing.wait()
            while house.state()[0] == "loading":  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert house.state() == ("failed", "no memory")

    run(body)


def test_the_reason_of_a_failed_load_survives_a_failing_close() -> None:
    async def body() -> None:
        broken = Mortal(start_error=ModelLoadFailed("no memory"))
        broken.close_error = RuntimeError("stuck")
        house = House(broken)
        async with house.runtime:
            with pytest.raises(ModelLoadFailed, match="no memory") as caught:
                await house.ask()
            assert any("stuck" in note for note in caught.value.__notes__)

    run(body)


class Sticky(FakeValidator):
    async def aclose(self) -> None:
        await super().aclose()
        raise ThemisError(f"validator {len(self.inputs)} sticks")


@pytest.mark.parametrize("cancelled", [False, True])
def test_everything_is_closed_whatever_the_others_raise(cancelled: bool) -> None:
    async def body() -> None:
        backends = {name: Mortal() for name in "ab"}
        backends["a"].close_error = RuntimeError("the model sticks")
        validators = [Sticky("x"), Sticky("y"), FakeValidator("z")]
        quota = FakeQuota()
        if cancelled:
            backends["b"].close_gate = asyncio.Event()
        sources = {
            name: ModelSource(backend="mortal", make=lambda b=backend: b)  # type: ignore[misc]
            for name, backend in backends.items()
        }
        runtime = Runtime(sources, default="a", validators=validators, quota=quota)
        for name in backends:
            await runtime.complete(GenerateRequest(model=name, prompt="hi"))
        closing = asyncio.create_task(runtime.aclose())
        if cancelled:
            await backends["b"].closing.wait()
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        else:
            with pytest.raises(RuntimeError, match="the model sticks") as caught:
                await closing
            notes = "\n".join(caught.value.__notes__)
            assert "model 'a'" in notes
            assert notes.count("validator 2 sticks") == 2
            assert [backend.closes for backend in backends.values()] == [1, 1]
        assert [validator.closes for validator in validators] == [1, 1, 1]
        assert quota.closes == 1

    run(body)


def test_why_the_start_failed_is_said_even_if_closing_fails() -> None:
    async def body() -> None:
        backend = Mortal(start_error=ModelLoadFailed("no memory"))
        source = ModelSource(backend="mortal", make=lambda: backend, preload=True)
        runtime = Runtime({"m": source}, default="m", validators=[Sticky("x")])
        with pytest.raises(ModelLoadFailed, match="no memory") as caught:
            await runtime.start()
        assert any("validator 0 sticks" in note for note in caught.value.__notes__)

    run(body)


class WithAdapters(ScriptedBackend):
    def __init__(self) -> None:
        super().__init__([Hold()])
        self.loaded: dict[str, Any] = {}

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        self.loaded[name] = (path, description)

    async def unload_adapter(self, name: str) -> None:
        del self.loaded[name]

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        return tuple(AdapterWeight(name=name) for name in self.loaded)


def test_adapters_are_those_of_the_model_that_is_named() -> None:
    async def body() -> None:
        one, two = WithAdapters(), WithAdapters()
        async with themis_core.open(backends={"one": one, "two": two}) as runtime:
            await runtime.load_adapter("a", "a.gguf")
            await runtime.load_adapter("b", "b.gguf", model="two", description="B")
            assert one.loaded == {"a": ("a.gguf", "")}
            assert two.loaded == {"b": ("b.gguf", "B")}
            assert await runtime.adapters() == (AdapterWeight(name="a"),)
            assert await runtime.adapters("two") == (AdapterWeight(name="b"),)
            await runtime.unload_adapter("b", model="two")
            assert await runtime.adapters("two") == ()

    run(body)
