"""What the engine adds to a runner, through the backend: adapters, embeddings, stored prefixes."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from themis_core.errors import (
    AdapterNotFound,
    BackendFailed,
    InvalidRequest,
    ModelLoadFailed,
    RequestTooLarge,
)
from themis_core.messages import (
    AdapterWeight,
    ChatMessage,
    Constraint,
    Delta,
    EmbedRequest,
    Finished,
    GenerateRequest,
    SamplingParams,
    Started,
    Tool,
)
from themis_engine import AdapterFile, Batch, EngineBackend, EngineOptions, StepInterrupted
from themis_engine.adapter_choice import choose_adapters, query_of
from themis_engine.constraint import Matcher
from themis_testkit.conformance.base import collect, complete, idle
from themis_testkit.fakes.toy_runner import ToyRunner, greedy, toy_state


def run(
    runner: ToyRunner, body: Callable[[EngineBackend], Awaitable[None]], **options: Any
) -> None:
    async def main() -> None:
        backend = EngineBackend(lambda: runner, backend="toy", options=EngineOptions(**options))
        await backend.start()
        try:
            await asyncio.wait_for(body(backend), 30)
        finally:
            await backend.aclose()

    asyncio.run(main())
    assert runner.closed == 1


def request(prompt: tuple[int, ...] = (1, 2, 3), **changes: Any) -> GenerateRequest:
    sampling = {"temperature": 0.0, "max_tokens": 8} | changes.pop("sampling", {})
    return GenerateRequest(prompt=prompt, sampling=SamplingParams(**sampling), **changes)


async def ids(backend: EngineBackend, wanted: GenerateRequest) -> list[int]:
    return list((await complete(backend, wanted)).choices[0].token_ids)


# --- adapters ------------------------------------------------------------------------------------


def test_adapters_of_the_configuration_are_loaded() -> None:
    async def body(backend: EngineBackend) -> None:
        assert [a.name for a in await backend.adapters()] == ["formal", "terse"]
        wanted = request(adapters=(AdapterWeight(name="terse", weight=0.5),))
        assert await ids(backend, wanted) == greedy([1, 2, 3], 8, (("b.gguf", 0.5),))

    files: dict[str, str | AdapterFile] = {"formal": AdapterFile(path="a.gguf"), "terse": "b.gguf"}
    run(ToyRunner(), body, adapters=files)


def test_an_adapter_of_the_configuration_that_is_broken_stops_the_start() -> None:
    async def body(backend: EngineBackend) -> None:
        pytest.fail("it started")

    runner = ToyRunner()
    with pytest.raises(Exception, match=r"broken\.gguf"):
        run(runner, body, adapters={"x": "broken.gguf"})
    assert runner.closed == 1


def test_another_adapter_under_the_same_name_shares_no_prefix() -> None:
    async def body(backend: EngineBackend) -> None:
        prompt = tuple(range(1, 20))
        wanted = request(prompt, adapters=(AdapterWeight(name="x"),))
        for path in ("a", "b"):
            await backend.load_adapter("x", path)
            for _ in range(2):
                assert await ids(backend, wanted) == greedy(list(prompt), 8, ((path, 1.0),))
            await backend.unload_adapter("x")

    run(ToyRunner(), body)


def test_weight_zero_is_no_adapter() -> None:
    async def body(backend: EngineBackend) -> None:
        await backend.load_adapter("x", "a")
        wanted = request(adapters=(AdapterWeight(name="x", weight=0.0),))
        assert await ids(backend, wanted) == greedy([1, 2, 3], 8)

    run(ToyRunner(), body)


@pytest.mark.parametrize(
    "adapters",
    [
        (AdapterWeight(name="x"), AdapterWeight(name="x", weight=2.0)),
        (AdapterWeight(name="x", weight=math.nan),),
        (AdapterWeight(name="x", weight=math.inf),),
    ],
)
def test_senseless_adapters_are_refused(adapters: tuple[AdapterWeight, ...]) -> None:
    async def body(backend: EngineBackend) -> None:
        await backend.load_adapter("x", "a")
        with pytest.raises(InvalidRequest):
            await ids(backend, request(adapters=adapters))
        await backend.unload_adapter("x")

    run(ToyRunner(), body)


def test_cancelling_an_unload_keeps_the_adapter() -> None:
    async def body(backend: EngineBackend) -> None:
        await backend.load_adapter("x", "a")
        wanted = request(adapters=(AdapterWeight(name="x"),), sampling={"max_tokens": 50})
        async with aclosing(backend.generate(wanted)) as events:
            await anext(events)
            unload = asyncio.create_task(backend.unload_adapter("x"))
            while (await backend.adapters()) != ():  # noqa: ASYNC110 - it has no event to wait for.
                await asyncio.sleep(0)
            with pytest.raises(AdapterNotFound):
                await ids(backend, wanted)
            unload.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unload
            assert [a.name for a in await backend.adapters()] == ["x"]

    run(ToyRunner(), body)


def vector(*values: float) -> Any:
    array = np.array(values, np.float32)
    return array / np.linalg.norm(array)


def test_the_query_chooses_the_nearest_adapters() -> None:
    known = {"law": vector(1, 0, 0), "medicine": vector(0, 1, 0), "cooking": vector(0, 0, 1)}
    (only,) = choose_adapters(vector(1, 0.1, 0), known)
    assert only == AdapterWeight(name="law")
    two = choose_adapters(vector(1, 0.98, 0), known)
    assert [adapter.name for adapter in two] == ["law", "medicine"]
    assert sum(adapter.weight for adapter in two) == pytest.approx(1)
    assert two[0].weight > two[1].weight
    assert choose_adapters(vector(1, 1, 1), known) == ()
    assert choose_adapters(vector(1, 0, 0), {}) == ()


def test_the_query_is_the_last_thing_the_user_said() -> None:
    messages = (
        ChatMessage(role="user", content="first"),
        ChatMessage(role="user", content="second"),
        ChatMessage(role="assistant", content="third"),
    )
    assert query_of(GenerateRequest(messages=messages)) == "second"
    assert query_of(GenerateRequest(prompt="text")) == "text"
    assert query_of(GenerateRequest(prompt=(1, 2))) == ""


def test_adapters_chosen_by_the_query_are_reported_and_used() -> None:
    async def body(backend: EngineBackend) -> None:
        wanted = GenerateRequest(
            prompt="ABOUT LAW", sampling=SamplingParams(temperature=0.0, max_tokens=4)
        )
        events = await collect(backend, wanted)
        started = events[0]
        assert isinstance(started, Started)
        # What is asked for by its own description is certain.
        assert started.adapters == (AdapterWeight(name="law"),)
        prompt = list(await backend.tokenize("ABOUT LAW"))
        tokens = [t for e in events if isinstance(e, Delta) for t in e.token_ids]
        assert tokens == greedy(prompt, 4, (("law.gguf", 1.0),))
        # A request that names adapters gets those.
        named = GenerateRequest(prompt="ABOUT LAW", adapters=(AdapterWeight(name="cooking"),))
        first = (await collect(backend, named))[0]
        assert first == Started(prompt_tokens=len(prompt))

    files = {
        "law": AdapterFile(path="law.gguf", description="ABOUT LAW"),
        "cooking": AdapterFile(path="cooking.gguf", description="SOUP"),
    }
    run(ToyRunner(embedding_size=16), body, adapters=files, adapter_choice="query")


# --- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_are_pooled_and_normalised(pooling: str) -> None:
    texts = [tuple(range(1, n)) for n in (3, 9, 30, 5)]

    async def body(backend: EngineBackend) -> None:
        response = await backend.embed(EmbedRequest(inputs=tuple(texts)))
        for text, found in zip(texts, response.embeddings, strict=True):
            states = np.array([toy_state(list(text[: i + 1]), 16) for i in range(len(text))])
            rows = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}
            expected = rows[pooling] / np.linalg.norm(rows[pooling])
            assert found == pytest.approx(expected, abs=1e-5)
        assert response.usage.prompt_tokens == sum(map(len, texts))

    run(ToyRunner(embedding_size=16, max_batch=8), body, pooling=pooling)


def test_embedding_and_generating_share_the_model() -> None:
    async def body(backend: EngineBackend) -> None:
        prompts = [tuple(range(i, i + 12)) for i in range(1, 9)]
        generated, embedded = await asyncio.gather(
            asyncio.gather(*(ids(backend, request(p)) for p in prompts)),
            asyncio.gather(*(backend.embed(EmbedRequest(inputs=(p,))) for p in prompts)),
        )
        assert generated == [greedy(list(p), 8) for p in prompts]
        alone = await backend.embed(EmbedRequest(inputs=tuple(prompts)))
        for one, expected in zip(embedded, alone.embeddings, strict=True):
            assert one.embeddings[0] == pytest.approx(expected)

    run(ToyRunner(embedding_size=16, kv=80, max_batch=8), body)


def test_a_text_that_cannot_be_embedded_is_named() -> None:
    async def body(backend: EngineBackend) -> None:
        long = tuple([1] * 65)
        with pytest.raises(RequestTooLarge, match="Input 1 has 65 tokens"):
            await backend.embed(EmbedRequest(inputs=((1,), long)))

    run(ToyRunner(embedding_size=16), body)


def test_a_cancelled_embedding_leaves_nothing() -> None:
    async def body(backend: EngineBackend) -> None:
        tasks = [
            asyncio.create_task(backend.embed(EmbedRequest(inputs=(tuple([i] * 40),) * 8)))
            for i in range(1, 6)
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await ids(backend, request()) == greedy([1, 2, 3], 8)
        await idle(backend)

    runner = ToyRunner(embedding_size=16)
    run(runner, body)
    assert runner.used_cells() == 0


# --- prefixes that leave the KV cache ------------------------------------------------------------


def test_a_prefix_comes_back_after_a_restart(tmp_path: Path) -> None:
    prompt = tuple(1 + i % 60 for i in range(48))
    cached = []
    for _ in range(2):

        async def body(backend: EngineBackend) -> None:
            answer = await complete(backend, request(prompt))
            assert list(answer.choices[0].token_ids) == greedy(list(prompt), 8)
            cached.append(answer.usage.cached_tokens)

        run(ToyRunner(), body, prefix_disk=str(tmp_path / "prefixes"))
    assert cached[0] == 0
    assert cached[1] >= 40


def test_a_prefix_comes_back_from_ram() -> None:
    async def body(backend: EngineBackend) -> None:
        prompts = [(i, *[1 + j % 60 for j in range(40)]) for i in (1, 2, 3)]
        for prompt in [*prompts, *prompts]:
            answer = await complete(backend, request(prompt))
            assert list(answer.choices[0].token_ids) == greedy(list(prompt), 8)
        # There is room for one of them in the KV cache.
        assert answer.usage.cached_tokens >= 40

    run(ToyRunner(kv=64), body, prefix_ram_mib=1)


def test_storing_needs_a_model_whose_state_can_be_saved() -> None:
    class Plain(ToyRunner):
        save = None  # type: ignore[assignment]

    async def body(backend: EngineBackend) -> None:
        pytest.fail("it started")

    with pytest.raises(ModelLoadFailed, match="cannot be stored"):
        run(ToyRunner(), body, prefix_ram_mib=1, prefix_cache=False)


# --- steps that nobody waits for -----------------------------------------------------------------


class Interruptible(ToyRunner):
    """Its batches with the token 5 end only when they are interrupted, or let go."""

    def __init__(self) -> None:
        super().__init__(before_forward=self._hold)
        self.begun, self.interrupted, self.release = (threading.Event() for _ in range(3))
        self.wake = threading.Event()

    def interrupt(self) -> None:
        self.interrupted.set()
        self.wake.set()

    def _hold(self, batch: Batch) -> None:
        if 5 in batch.tokens and not self.release.is_set():
            self.begun.set()
            assert self.wake.wait(20)
            self.wake.clear()
            if self.interrupted.is_set():
                self.interrupted.clear()
                raise StepInterrupted


def test_a_step_that_nobody_waits_for_ends_early() -> None:
    runner = Interruptible()

    async def body(backend: EngineBackend) -> None:
        task = asyncio.create_task(complete(backend, request((5, 5, 5))))
        assert await asyncio.to_thread(runner.begun.wait, 20)
        task.cancel()  # Without the interrupt, the engine would be stuck from here on.
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ids(backend, request()) == greedy([1, 2, 3], 8)
        stats = await backend.stats()
        assert (stats.cancelled, stats.failed, stats.running) == (1, 0, 0)

    run(runner, body)


def test_a_step_that_somebody_needs_goes_on() -> None:
    runner = Interruptible()

    async def body(backend: EngineBackend) -> None:
        first = asyncio.create_task(complete(backend, request((5, 5, 5))))
        assert await asyncio.to_thread(runner.begun.wait, 20)
        runner.begun.clear()
        # Both are in the next batch.
        second = asyncio.create_task(ids(backend, request((5, 5, 6))))
        while not backend._engine._inbox.qsize():  # type: ignore[union-attr]  # noqa: ASYNC110
            await asyncio.sleep(0)
        runner.wake.set()
        assert await asyncio.to_thread(runner.begun.wait, 20)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not runner.interrupted.is_set()
        runner.release.set()
        runner.wake.set()
        assert await second == greedy([5, 5, 6], 8)

    run(runner, body)


def test_an_interrupt_that_comes_too_late_costs_others_nothing() -> None:
    """It was meant for the batch before; the one that it hits is computed again."""
    runner = Interruptible()

    async def body(backend: EngineBackend) -> None:
        gone = asyncio.create_task(complete(backend, request((5, 5, 5))))
        other = asyncio.create_task(ids(backend, request((5, 5, 6))))
        assert await asyncio.to_thread(runner.begun.wait, 20)
        gone.cancel()
        runner.interrupt()
        with pytest.raises(asyncio.CancelledError):
            await gone
        runner.release.set()
        runner.wake.set()
        assert await other == greedy([5, 5, 6], 8)

    run(runner, body)


def test_an_interrupt_that_nobody_asked_for_is_an_error() -> None:
    def broken(batch: Batch) -> None:
        raise StepInterrupted

    async def body(backend: EngineBackend) -> None:
        with pytest.raises(BackendFailed):
            await complete(backend, request())

    run(ToyRunner(before_forward=broken), body)


# --- constraints in the loop ---------------------------------------------------------------------


def constrained(pattern: str) -> GenerateRequest:
    constraint = Constraint(kind="regex", value=pattern)
    return request(constraint=constraint, sampling={"max_tokens": 20})


def test_a_constraint_that_breaks_down_fails_its_own_request_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Matcher.mask

    def mask(self: Matcher, row: Any) -> None:
        if len(self.forced(20)) == 5:  # The pattern whose text is certain.
            raise BackendFailed("too slow")
        original(self, row)

    monkeypatch.setattr(Matcher, "mask", mask)

    async def body(backend: EngineBackend) -> None:
        good, bad, free = await asyncio.gather(
            complete(backend, constrained("[A-C]{8}")),
            complete(backend, constrained("HELLO")),
            complete(backend, request()),
            return_exceptions=True,
        )
        assert isinstance(bad, BackendFailed)
        assert not isinstance(good, BaseException)
        assert not isinstance(free, BaseException)
        assert len(good.text) == 8
        assert list(free.choices[0].token_ids) == greedy([1, 2, 3], 8)

    run(ToyRunner(), body)


@pytest.mark.parametrize("options", [{}, {"speculation": "lookup"}])
def test_what_a_constraint_forces_is_computed_in_one_step(options: dict[str, Any]) -> None:
    """The answers are the same where log-probabilities are wanted, which goes token by token."""
    text = "THE-ANSWER-IS-"
    answers: list[list[int]] = []
    steps: list[int] = []

    async def body(backend: EngineBackend) -> None:
        constraint = Constraint(kind="regex", value=text + "[AB]{2}")
        for logprobs in (None, 0):
            before = (await backend.stats()).steps
            sampling = {"max_tokens": 20, "logprobs": logprobs}
            answers.append(await ids(backend, request(constraint=constraint, sampling=sampling)))
            steps.append((await backend.stats()).steps - before)
        assert await ids(backend, request()) == greedy([1, 2, 3], 8)

    run(ToyRunner(truncates="speculation" in options), body, **options)
    assert answers[0] == answers[1]
    assert len(answers[0]) == len(text) + 2
    assert steps[0] <= 5
    assert steps[1] >= (len(text) + 2) / (1 + 8 * ("speculation" in options))


def test_a_stop_among_forced_tokens_ends_the_answer_there() -> None:
    async def body(backend: EngineBackend) -> None:
        sampling = {"stop_token_ids": (ord("L") - 32,), "max_tokens": 20}
        wanted = request(constraint=Constraint(kind="regex", value="HE(LLO)?"), sampling=sampling)
        assert (await complete(backend, wanted)).text == "HE"
        limited = request(
            constraint=Constraint(kind="regex", value="A{9}"), sampling={"max_tokens": 5}
        )
        choice = (await complete(backend, limited)).choices[0]
        assert (choice.text, choice.finish_reason) == ("AAAAA", "length")
        assert await ids(backend, request()) == greedy([1, 2, 3], 8)

    run(ToyRunner(), body)


def test_a_constrained_answer_that_a_stop_string_cuts_is_an_error() -> None:
    async def body(backend: EngineBackend) -> None:
        wanted = GenerateRequest(
            prompt=(1, 2, 3),
            constraint=Constraint(kind="regex", value="HELLO"),
            sampling=SamplingParams(stop=("L",), max_tokens=20),
        )
        with pytest.raises(BackendFailed, match="does not obey its constraint"):
            await complete(backend, wanted)
        await idle(backend)

    run(ToyRunner(), body)


def test_senseless_combinations_with_a_constraint_are_refused() -> None:
    async def body(backend: EngineBackend) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await complete(
                backend,
                request(
                    constraint=Constraint(kind="regex", value="A"), sampling={"ignore_eos": True}
                ),
            )
        assert caught.value.field == "sampling.ignore_eos"

    run(ToyRunner(), body)


# --- the loop ------------------------------------------------------------------------------------


def test_a_stop_string_frees_the_sequence_at_once() -> None:
    steps = []
    loops: list[asyncio.AbstractEventLoop] = []

    def let_the_loop_turn(batch: Batch) -> None:
        """A model takes longer for a step than the event loop for what the last one brought."""
        for _ in range(3):
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loops[0]).result()

    async def body(backend: EngineBackend) -> None:
        loops.append(asyncio.get_running_loop())
        text = (await complete(backend, request(sampling={"max_tokens": 50}))).text
        before = (await backend.stats()).completion_tokens
        stop = text[4:6]
        wanted = request(sampling={"max_tokens": 50, "stop": (stop,)})
        events = await collect(backend, wanted)
        finished = next(event for event in events if isinstance(event, Finished))
        assert finished == Finished(reason="stop", matched=stop)
        await idle(backend)
        stats = await backend.stats()
        assert stats.finished == 2
        assert stats.cancelled == 0
        steps.append(stats.completion_tokens - before)

    run(ToyRunner(before_forward=let_the_loop_turn), body)
    # The six tokens that the text needs, and a step or two that were on their way.
    assert steps[0] <= 9


def test_an_engine_that_has_died_says_so() -> None:
    runner = ToyRunner()

    def free(sequence: int) -> None:
        raise ZeroDivisionError("broken")

    async def body(backend: EngineBackend) -> None:
        assert backend.info.backend == "toy"
        runner.free = free  # type: ignore[method-assign]
        await asyncio.gather(
            *(ids(backend, request((i, 2))) for i in (1, 3)), return_exceptions=True
        )
        with pytest.raises(BackendFailed):
            await ids(backend, request((5, 5)))
        with pytest.raises(BackendFailed):
            _ = backend.info

    run(runner, body, prefix_cache=False)


def test_tools_of_a_model_without_a_format_are_not_declared() -> None:
    async def body(backend: EngineBackend) -> None:
        assert "tools" not in backend.info.capabilities.request_fields
        assert "messages" in backend.info.capabilities.request_fields
        assert Tool(name="x").name == "x"

    run(ToyRunner(), body)
