"""The runtime without asyncio: real threads, and nobody who waits for ever."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import themis_core
from themis_core.errors import BackendClosed, BackendFailed, ModelLoadFailed, ThemisError
from themis_core.messages import Finished, GenerateRequest, Started
from themis_core.runtime import BlockingRuntime, ModelSource, Runtime
from themis_testkit.fakes import FakeValidator, Hold, ScriptedBackend, Step, say

PATIENCE = 60  # Of tests that fail; those that pass wait for events only.
ASK = GenerateRequest(prompt="hi")


def opened(backend: ScriptedBackend, **arguments: Any) -> BlockingRuntime:
    source = ModelSource(backend="scripted", make=lambda: backend)
    return BlockingRuntime(Runtime({"m": source}, default="m", **arguments))


class Caller(threading.Thread):
    """Calls in a thread of its own; a daemon, so that a test that fails can end."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.result: object = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it.
            self.result = error

    def finished(self) -> object:
        self.join(PATIENCE)
        assert not self.is_alive(), "the call waits for ever"
        return self.result


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("themis")]


@pytest.mark.parametrize("round_", range(40))
def test_calls_that_meet_the_closing_end(round_: int) -> None:
    """Some in flight, some about to be made, some between two events, in several threads."""

    def script(request: GenerateRequest) -> Iterable[Step]:
        return [Hold()] if request.prompt == "hold" else say("a", "b")

    backend = ScriptedBackend(script)
    warm = threading.Barrier(5)

    def repeat(once: Callable[[], object]) -> Callable[[], object]:
        def work() -> object:
            once()
            warm.wait()
            while True:
                once()

        return work

    def hold() -> None:
        warm.wait()
        runtime.complete(GenerateRequest(prompt="hold"))

    def stream() -> None:
        for _ in runtime.generate(ASK):
            pass

    runtime = opened(backend)
    with runtime:
        callers = [
            Caller(repeat(lambda: runtime.complete(ASK))),
            Caller(repeat(stream)),
            Caller(repeat(runtime.stats)),
            Caller(hold),
        ]
        warm.wait()
        for _ in range(round_ % 7):  # Leave at different moments.
            runtime.complete(ASK)
    assert [type(caller.finished()) for caller in callers] == [BackendClosed] * 4
    assert not threads()


def test_a_call_that_no_backend_ends_is_ended_by_the_closing() -> None:
    reached = threading.Event()

    class Stuck(FakeValidator):
        async def check_input(self, request: GenerateRequest) -> GenerateRequest:
            reached.set()
            await asyncio.Event().wait()
            return request

    runtime = opened(ScriptedBackend(say("a")), validators=[Stuck("x")])
    with runtime:
        caller = Caller(lambda: runtime.complete(ASK))
        assert reached.wait(PATIENCE)
    assert isinstance(caller.finished(), BackendClosed)


def test_an_iterator_dropped_on_the_loops_thread_does_not_block_it() -> None:
    kept: list[Any] = []

    def script(request: GenerateRequest) -> Iterable[Step]:
        if request.prompt == "drop":
            kept.clear()  # Scripts are played on the loop's thread.
        return [Started(prompt_tokens=1), Hold()] if request.prompt == "hi" else say("a")

    backend = ScriptedBackend(script)

    def body() -> object:
        with opened(backend) as runtime:
            kept.append(runtime.generate(ASK))
            next(kept[0])
            return runtime.complete(GenerateRequest(prompt="drop")).text

    assert Caller(body).finished() == "a"
    assert backend.cancelled == [ASK.request_id]
    assert not threads()


def test_an_iterator_closed_on_the_loops_thread_is_closed_soon() -> None:
    kept: list[Any] = []

    def script(request: GenerateRequest) -> Iterable[Step]:
        if request.prompt == "close":
            kept[0].close()
        return [Started(prompt_tokens=1), Hold()] if request.prompt == "hi" else say("a")

    backend = ScriptedBackend(script)

    def body() -> object:
        with opened(backend) as runtime:
            kept.append(runtime.generate(ASK))
            next(kept[0])
            return runtime.complete(GenerateRequest(prompt="close")).text

    assert Caller(body).finished() == "a"
    assert backend.cancelled == [ASK.request_id]


def test_a_blocking_call_on_the_loops_thread_is_refused() -> None:
    found: list[object] = []

    def script(request: GenerateRequest) -> Iterable[Step]:
        try:
            runtime.stats()
        except RuntimeError as error:
            found.append(error)
        return say("a")

    runtime = opened(ScriptedBackend(script))

    def body() -> object:
        with runtime:
            return runtime.complete(ASK).text

    assert Caller(body).finished() == "a"
    assert len(found) == 1


def test_iterators_end_as_generators_do() -> None:
    backend = ScriptedBackend([*say("a")[:-1], BackendFailed("broken")])
    with opened(backend) as runtime:
        events = runtime.generate(ASK)
        assert [type(next(events)).__name__ for _ in range(3)] == ["Started", "Delta", "Finished"]
        with pytest.raises(BackendFailed):
            next(events)
        assert list(events) == []  # Its last word was the error.
        events.close()
        with runtime.generate(ASK) as events:
            next(events)
        assert len(backend.cancelled) == 1
        assert list(events) == []
        left = runtime.generate(ASK)
        next(left)
        unused = runtime.generate(ASK)
    assert len(backend.cancelled) == 2  # Closing the runtime has closed the one that was left.
    for events in (left, unused):
        with pytest.raises(BackendClosed):
            next(events)
        assert list(events) == []
        events.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("at_once", [True, False])
def test_an_interrupt_leaves_nothing_running(at_once: bool) -> None:
    """Ctrl-C while an event is waited for: when it is raised, the generation has ended."""
    main = threading.get_ident()

    def script(request: GenerateRequest) -> Iterable[Step]:
        yield Started(prompt_tokens=1)
        signal.pthread_kill(main, signal.SIGINT)
        yield Finished(reason="stop") if at_once else Hold()
        yield Hold()

    backend = ScriptedBackend(script)
    with opened(backend) as runtime:
        events = runtime.generate(ASK)
        with pytest.raises(KeyboardInterrupt):
            for _ in events:
                pass
        assert backend.cancelled == [ASK.request_id]
        assert list(events) == []
    assert not threads()


def test_an_interrupt_while_a_call_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C just after the event loop was given its work, before anybody waits for it."""
    backend = ScriptedBackend(lambda request: [Started(prompt_tokens=1), Hold()])
    with opened(backend) as runtime:
        thread: Any = runtime._thread
        wake = thread._loop._write_to_self

        def interrupted() -> None:
            monkeypatch.undo()
            wake()
            raise KeyboardInterrupt

        events = runtime.generate(ASK)
        monkeypatch.setattr(thread._loop, "_write_to_self", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(events)
        assert list(events) == []
        assert not thread._tasks
    assert not threads()


def test_before_and_behind_the_with_block() -> None:
    runtime = opened(ScriptedBackend(say("a")))
    with pytest.raises(BackendClosed, match="Enter it"):
        runtime.complete(ASK)
    with pytest.raises(BackendClosed, match="Enter it"):
        runtime.generate(ASK)
    with runtime:
        assert runtime.complete(ASK).text == "a"
    with pytest.raises(BackendClosed):
        runtime.complete(ASK)
    with pytest.raises(RuntimeError, match="only once"), runtime:
        pass
    assert not threads()


def test_a_failed_start_leaves_no_thread() -> None:
    backend = ScriptedBackend(start_error=ModelLoadFailed("no memory"))
    source = ModelSource(backend="scripted", make=lambda: backend, preload=True)
    with pytest.raises(ModelLoadFailed), BlockingRuntime(Runtime({"m": source}, default="m")):
        pass
    assert not threads()
    assert backend.closes == 1


def test_what_closing_raises_is_raised_and_the_thread_is_gone() -> None:
    class Sticky(ScriptedBackend):
        async def aclose(self) -> None:
            await super().aclose()
            raise ThemisError("it sticks")

    runtime = opened(Sticky(say("a")))
    with pytest.raises(ThemisError, match="it sticks"), runtime:
        runtime.complete(ASK)
    assert not threads()


def test_it_does_all_that_the_other_one_does() -> None:
    """Except what is asynchronous by nature."""
    ours = {name for name in vars(BlockingRuntime) if not name.startswith("_")}
    theirs = {name for name in vars(Runtime) if not name.startswith("_")}
    assert theirs - ours == {"start", "aclose"}
    with themis_core.open_blocking(backends={"m": ScriptedBackend(say("a"))}) as runtime:
        assert runtime.model_info().backend == "scripted"
        assert runtime.adapters() == ()
        assert runtime.default_model == "m"
        assert runtime.stats()["m"].requests == 0
