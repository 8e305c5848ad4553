"""`EngineBackend` with a toy runner: batching, cancelling, failing and closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    DeadlineExceeded,
    InvalidRequest,
    ModelFileInvalid,
    ModelLoadFailed,
    PromptTooLong,
    RequestTooLarge,
)
from themis_core.messages import (
    ChatMessage,
    Delta,
    Done,
    Finished,
    GenerateRequest,
    SamplingParams,
    Started,
)
from themis_engine import Batch, EngineBackend, EngineOptions
from themis_testkit.fakes.toy_runner import ToyRunner, greedy


def request(prompt: tuple[int, ...] | str = (1, 2, 3), **sampling: object) -> GenerateRequest:
    sampling = {"temperature": 0.0, "max_tokens": 8} | sampling
    return GenerateRequest(prompt=prompt, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]


def run(
    runner: ToyRunner,
    body: Callable[[EngineBackend], Awaitable[None]],
    *,
    cut_off: bool = False,
    **options: Any,
) -> None:
    """Run `body`; unless it is `cut_off` by closing or a defect, no sequence may be left over."""

    async def main() -> None:
        backend = EngineBackend(lambda: runner, backend="toy", options=EngineOptions(**options))
        await backend.start()
        try:
            await asyncio.wait_for(body(backend), 20)
        finally:
            await backend.aclose()

    asyncio.run(main())
    assert runner.closed == 1
    if not cut_off:
        assert not any(runner.kv.values()), "a sequence was left in the KV cache"
    assert not [t for t in threading.enumerate() if t.name.startswith("themis-")]


async def ids(backend: EngineBackend, wanted: GenerateRequest) -> list[int]:
    async with aclosing(backend.generate(wanted)) as events:
        return [t async for e in events if isinstance(e, Delta) for t in e.token_ids]


class Gate:
    """Stops the engine thread inside `forward` until it is opened."""

    def __init__(self, at_step: int) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self._left = at_step

    def __call__(self, batch: Batch) -> None:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self.open.wait(10)


def test_events_come_in_their_order() -> None:
    async def body(backend: EngineBackend) -> None:
        events = [event async for event in backend.generate(request())]
        assert events[0] == Started(prompt_tokens=3)
        assert [type(e) for e in events[1:9]] == [Delta] * 8
        assert events[9] == Finished(reason="length")
        done = events[10]
        assert isinstance(done, Done)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 8)

    run(ToyRunner(), body)


def test_many_at_once_equal_each_alone() -> None:
    async def body(backend: EngineBackend) -> None:
        prompts = [tuple(range(1, 2 + i)) for i in range(20)]
        results = await asyncio.gather(*(ids(backend, request(p)) for p in prompts))
        assert list(results) == [greedy(list(p), 8) for p in prompts]
        stats = await backend.stats()
        assert (stats.requests, stats.finished, stats.running, stats.kv_used) == (20, 20, 0, 0)

    runner = ToyRunner(kv=60)
    run(runner, body)
    assert max(runner.batches) > 4, "nothing was batched"


def test_leaving_frees_the_sequence_within_one_step() -> None:
    gate = Gate(at_step=3)

    async def body(backend: EngineBackend) -> None:
        events = backend.generate(request(max_tokens=50))
        assert isinstance(await anext(events), Started)
        await asyncio.to_thread(gate.reached.wait)
        before = (await backend.stats()).steps
        await events.aclose()
        gate.open.set()
        await ids(backend, request())  # Whatever comes next is computed after the cancellation.
        stats = await backend.stats()
        assert (stats.cancelled, stats.running) == (1, 0)
        # The step that was under way, and those of the request that came next: 1 + 8.
        assert stats.steps <= before + 1 + 8

    run(ToyRunner(before_forward=gate), body)


def test_cancelling_the_task_cancels_the_request() -> None:
    gate = Gate(at_step=2)

    async def body(backend: EngineBackend) -> None:
        task = asyncio.create_task(ids(backend, request(max_tokens=50)))
        await asyncio.to_thread(gate.reached.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        await ids(backend, request())
        assert (await backend.stats()).cancelled == 1

    run(ToyRunner(before_forward=gate), body)


def test_leaving_the_queue() -> None:
    gate = Gate(at_step=1)

    async def body(backend: EngineBackend) -> None:
        first = asyncio.create_task(ids(backend, request()))
        await asyncio.to_thread(gate.reached.wait)
        second = asyncio.create_task(ids(backend, request((9, 9))))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open.set()
        assert await first == greedy([1, 2, 3], 8)
        await ids(backend, request())
        assert (await backend.stats()).waiting == 0

    run(ToyRunner(slots=1, before_forward=gate), body)


def test_a_failing_step_fails_its_requests_and_no_others() -> None:
    def fail_on_63(batch: Batch) -> None:
        if 63 in batch.tokens:
            raise ZeroDivisionError("native trouble")

    async def body(backend: EngineBackend) -> None:
        with pytest.raises(BackendFailed, match="native trouble") as caught:
            await ids(backend, request((63,)))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert await ids(backend, request((5, 4), max_tokens=1)) == greedy([5, 4], 1)
        stats = await backend.stats()
        assert (stats.failed, stats.finished) == (1, 1)

    run(ToyRunner(before_forward=fail_on_63), body)


def test_closing_fails_what_runs() -> None:
    gate = Gate(at_step=2)

    async def body(backend: EngineBackend) -> None:
        task = asyncio.create_task(ids(backend, request(max_tokens=50)))
        await asyncio.to_thread(gate.reached.wait)
        closing = asyncio.create_task(backend.aclose())
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(BackendClosed):
            await task
        await closing
        with pytest.raises(BackendClosed):
            await ids(backend, request())

    run(ToyRunner(before_forward=gate), body, cut_off=True)


def test_a_deadline_ends_a_request() -> None:
    gate = Gate(at_step=2)

    async def body(backend: EngineBackend) -> None:
        timed = GenerateRequest(
            prompt=(1, 2), timeout=0.001, sampling=SamplingParams(max_tokens=50)
        )
        task = asyncio.create_task(ids(backend, timed))
        other = asyncio.create_task(ids(backend, request(max_tokens=12)))
        gate.open.set()
        with pytest.raises(DeadlineExceeded):
            await task
        assert await other == greedy([1, 2, 3], 12)

    run(ToyRunner(before_forward=gate), body)


@pytest.mark.parametrize(
    ("wanted", "error", "field"),
    [
        (request(tuple([1] * 65), max_tokens=None), PromptTooLong, "prompt"),
        (request((1, 2), max_tokens=63), PromptTooLong, "sampling.max_tokens"),
        (request((1, 64)), InvalidRequest, "prompt"),
        (request((1, -1)), InvalidRequest, "prompt"),
        (request((1,), stop_token_ids=(99,)), InvalidRequest, "sampling.stop_token_ids"),
        (request((1,), logit_bias={99: 1.0}), InvalidRequest, "sampling.logit_bias"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(
    wanted: GenerateRequest, error: type[Exception], field: str
) -> None:
    async def body(backend: EngineBackend) -> None:
        with pytest.raises(error) as caught:
            await ids(backend, wanted)
        assert caught.value.field == field  # type: ignore[attr-defined]
        assert (await backend.stats()).requests == 0

    run(ToyRunner(), body)


def test_a_request_that_can_never_fit_is_refused() -> None:
    async def body(backend: EngineBackend) -> None:
        with pytest.raises(RequestTooLarge):
            await ids(backend, request((1,), max_tokens=40))

    run(ToyRunner(kv=32), body)


def test_the_context_is_filled_to_its_end_and_no_further() -> None:
    async def body(backend: EngineBackend) -> None:
        assert await ids(backend, request((1, 2), max_tokens=None)) == greedy([1, 2], 62)

    run(ToyRunner(), body)


def test_a_prompt_that_is_no_text_is_refused() -> None:
    async def body(backend: EngineBackend) -> None:
        with pytest.raises(InvalidRequest, match="no valid text"):
            await ids(backend, request("\ud800"))

    run(ToyRunner(), body)


def test_messages_go_through_the_template() -> None:
    async def body(backend: EngineBackend) -> None:
        messages = (ChatMessage(role="user", content="HI"),)
        assert await backend.detokenize(await backend.tokenize(messages)) == "[U:HI][A:"

    run(ToyRunner(), body)


def test_loading_that_fails_leaves_nothing() -> None:
    def load() -> ToyRunner:
        raise ModelFileInvalid("cut short")

    async def main() -> None:
        backend = EngineBackend(load, backend="toy")
        with pytest.raises(ModelFileInvalid, match="cut short"):
            await backend.start()
        await backend.aclose()
        with pytest.raises(BackendClosed):
            _ = backend.info

    asyncio.run(main())
    assert not [t for t in threading.enumerate() if t.name.startswith("themis-")]


@pytest.mark.parametrize("error", [ZeroDivisionError("trouble"), SystemExit("trouble")])
def test_whatever_loading_raises_is_a_failed_load(error: BaseException) -> None:
    def load() -> ToyRunner:
        raise error

    async def main() -> None:
        with pytest.raises(ModelLoadFailed, match="trouble"):
            await asyncio.wait_for(EngineBackend(load, backend="toy").start(), 20)

    asyncio.run(main())


def test_a_runner_without_a_usable_tokenizer_is_closed() -> None:
    runner = ToyRunner()
    runner.tokenizer = None  # type: ignore[assignment]

    async def main() -> None:
        with pytest.raises(ModelLoadFailed, match="end_tokens"):
            await asyncio.wait_for(EngineBackend(lambda: runner, backend="toy").start(), 20)

    asyncio.run(main())
    assert runner.closed == 1


def test_a_runner_that_exits_fails_its_requests_only() -> None:
    def leave(batch: Batch) -> None:
        if 63 in batch.tokens:
            raise SystemExit(3)

    async def body(backend: EngineBackend) -> None:
        with pytest.raises(BackendFailed, match="SystemExit"):
            await ids(backend, request((63,)))
        assert await ids(backend, request((5, 4), max_tokens=1)) == greedy([5, 4], 1)

    run(ToyRunner(before_forward=leave), body)


def test_a_runner_that_cannot_free_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(at_step=2)
    runner = ToyRunner(before_forward=gate)

    def free(sequence: int) -> None:
        raise ZeroDivisionError("broken")

    runner.free = free  # type: ignore[method-assign]

    async def body(backend: EngineBackend) -> None:
        tasks = [asyncio.create_task(ids(backend, request(max_tokens=50))) for _ in range(3)]
        await asyncio.to_thread(gate.reached.wait)
        tasks[0].cancel()
        gate.open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(isinstance(result, BackendFailed) for result in results[1:])
        with pytest.raises(BackendFailed):
            await ids(backend, request())

    run(runner, body, cut_off=True, prefix_cache=False)
    assert "The engine failed" in caplog.text


def test_an_event_loop_that_ends_without_closing_ends_the_thread() -> None:
    runner = ToyRunner()

    async def main() -> EngineBackend:
        backend = EngineBackend(lambda: runner, backend="toy")
        await backend.start()
        task = asyncio.create_task(ids(backend, request(max_tokens=50)))
        await asyncio.sleep(0)
        task.cancel()
        return backend

    backend = asyncio.run(main())
    threads = [t for t in threading.enumerate() if t.name.startswith("themis-")]
    asyncio.run(backend.aclose())
    assert not any(t.is_alive() for t in threads)
    assert runner.closed == 1
