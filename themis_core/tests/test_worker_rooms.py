"""The parts of supervision that need no process: suspects, journals, statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_core.errors import BackendFailed
from themis_core.messages import (
    BackendStats,
    Capabilities,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Histogram,
    ModelInfo,
    SamplingParams,
    Started,
    ToolCallDelta,
    Usage,
)
from themis_core.worker.resume import Journal
from themis_core.worker.suspects import Gate, Suspect
from themis_core.worker.tally import Tally
from themis_testkit.strategies import event_streams

INFO = ModelInfo(
    backend="x",
    capabilities=Capabilities(
        tokenize=True,
        request_fields=frozenset({"resume_token_ids", "sampling.seed", "sampling.temperature"}),
    ),
)

GREEDY = SamplingParams(temperature=0.0)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(limited())


# --- suspects ------------------------------------------------------------------------------------


def test_who_gets_further_is_no_suspect_any_more() -> None:
    suspect = Suspect()
    for progress in range(1, 6):
        suspect.progress = progress
        suspect.struck(alone=True)
        assert suspect.strikes == 1
        assert not suspect.guilty


def test_dying_twice_alone_without_progress_is_guilt() -> None:
    suspect = Suspect()
    suspect.struck(alone=True)
    assert not suspect.guilty
    suspect.struck(alone=True)
    assert suspect.guilty


def test_dying_in_company_is_not() -> None:
    suspect = Suspect()
    for _ in range(5):
        suspect.struck(alone=False)
    assert not suspect.guilty


def test_a_suspect_runs_alone_until_it_gets_further() -> None:
    async def main() -> None:
        gate, first, second, fresh = Gate(), Suspect(), Suspect(), Suspect()
        for suspect in (first, second):
            suspect.struck(alone=False)
            suspect.struck(alone=False)
        inside: list[str] = []
        ends = {name: asyncio.Event() for name in ("first", "second", "fresh")}

        async def enter(name: str, suspect: Suspect) -> None:
            async with gate.enter(suspect):
                inside.append(name)
                await ends[name].wait()
                inside.remove(name)

        tasks = [
            asyncio.create_task(enter("first", first)),
            asyncio.create_task(enter("second", second)),
            asyncio.create_task(enter("fresh", fresh)),
        ]
        await turns()
        assert inside == ["first"]
        first.progress = 1
        gate.clear(first)  # It runs on; the next must still be alone.
        await turns()
        assert inside == ["first"]
        ends["first"].set()
        await turns()
        assert inside == ["second"]
        second.progress = 1
        gate.clear(second)
        await turns()
        assert inside == ["second", "fresh"]
        ends["second"].set()
        ends["fresh"].set()
        await asyncio.gather(*tasks)

    run(main)


def test_a_suspect_that_leaves_the_queue_stops_nobody() -> None:
    async def main() -> None:
        gate, runner, suspect, fresh = Gate(), Suspect(), Suspect(), Suspect()
        suspect.struck(alone=False)
        suspect.struck(alone=False)

        async def enter(who: Suspect) -> None:
            async with gate.enter(who):
                pass

        async with gate.enter(runner):
            waiting = asyncio.create_task(enter(suspect))
            await turns()
            other = asyncio.create_task(enter(fresh))
            await turns()
            assert not other.done()
            waiting.cancel()
            await turns()
            assert other.done()

    run(main)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# --- carrying on ---------------------------------------------------------------------------------


def spelled(text: str, start: int = 0) -> list[GenerateEvent]:
    """An answer whose tokens are characters, from that token on."""
    deltas = [Delta(text=letter, token_ids=(ord(letter),)) for letter in text[start:]]
    used = Usage(prompt_tokens=2, completion_tokens=len(text))
    started = Started(prompt_tokens=2)
    return [started, *deltas, Finished(reason="length"), Done(usage=used)]


def given_to(journal: Journal, events: list[GenerateEvent]) -> list[GenerateEvent]:
    for event in events:
        journal.note(event)
    return events


@given(st.text("abc", min_size=1, max_size=12), st.data())
def test_what_was_given_and_what_follows_are_the_whole_answer(text: str, data: Any) -> None:
    """With tokens that the backend resumes: all but the last."""
    params = SamplingParams(temperature=0.0, max_tokens=20)
    request = GenerateRequest(prompt="ab", sampling=params)
    whole = spelled(text)
    cut = data.draw(st.integers(0, len(whole) - 2))
    journal = Journal(request, INFO)
    seen = given_to(journal, whole[:cut])
    plan = journal.continuation(INFO, None)
    resumed = plan.request.resume_token_ids
    tokens = sum(isinstance(event, Delta) for event in seen)
    assert resumed == tuple(map(ord, text[: max(0, tokens - 1)]))
    assert plan.request.sampling == params
    again = [new for event in spelled(text, len(resumed)) for new in plan.pass_on(event)]
    assert seen + again == whole


def test_a_request_that_was_resumed_before_is_resumed_further() -> None:
    request = GenerateRequest(
        prompt="ab", resume_token_ids=(1, 2), sampling=SamplingParams(temperature=0.0)
    )
    journal = Journal(request, INFO)
    given_to(journal, spelled("xyz")[:4])
    assert journal.continuation(INFO, None).request.resume_token_ids == (1, 2, 120, 121)


def test_calls_and_thoughts_are_taken_up_at_the_seam() -> None:
    """What came with the last token comes again with it, and is dropped; the rest follows."""
    whole: list[GenerateEvent] = [
        Started(prompt_tokens=1),
        Delta(reasoning="Hm", token_ids=(1,)),
        Delta(reasoning="m.", token_ids=(2,)),
        Delta(tool_calls=(ToolCallDelta(id="call_1", name="f"),), token_ids=(3,)),
        Delta(tool_calls=(ToolCallDelta(arguments="{"),), token_ids=(4,)),
        Delta(tool_calls=(ToolCallDelta(arguments="}"),), token_ids=(5,)),
        Finished(reason="tool_calls"),
        Done(usage=Usage(prompt_tokens=1, completion_tokens=5)),
    ]
    for cut in range(len(whole) - 1):
        journal = Journal(GenerateRequest(prompt="x", sampling=GREEDY), INFO)
        seen = given_to(journal, whole[:cut])
        plan = journal.continuation(INFO, None)
        again = [whole[0], *whole[1 + len(plan.request.resume_token_ids) :]]
        assert seen + [new for event in again for new in plan.pass_on(event)] == whole


@settings(max_examples=40)
@given(event_streams(), st.data())
def test_an_answer_that_is_given_again_is_taken_up_where_it_was_cut(
    whole: list[GenerateEvent], data: Any
) -> None:
    """Several choices, log-probabilities and reasoning: nothing is moved, all is compared."""
    whole = [
        msgspec.structs.replace(event, tool_calls=()) if isinstance(event, Delta) else event
        for event in whole
    ]
    n = sum(isinstance(event, Finished) for event in whole)
    request = GenerateRequest(prompt="x", sampling=SamplingParams(temperature=0.0, n=n))
    cut = data.draw(st.integers(0, len(whole) - 1))

    journal = Journal(request, ModelInfo(backend="x"))
    seen = given_to(journal, whole[:cut])
    plan = journal.continuation(ModelInfo(backend="x"), None)
    assert not plan.request.resume_token_ids
    rest = [new for event in whole for new in plan.pass_on(event)]
    assert joined(seen + rest) == joined(whole)


def joined(events: list[GenerateEvent]) -> list[Any]:
    """What the events say, however it is cut into deltas."""
    found: dict[int, list[Any]] = {}
    for event in events:
        if isinstance(event, Delta):
            entry = found.setdefault(event.index, ["", (), "", None])
            entry[0] += event.text
            entry[1] += event.token_ids
            entry[2] += event.reasoning
        elif isinstance(event, Finished):
            found.setdefault(event.index, ["", (), "", None])[3] = event
    return [sorted(found.items()), [e for e in events if isinstance(e, Started | Done)]]


@pytest.mark.parametrize("other", ["aXc", "a"])
def test_a_different_answer_is_an_error(other: str) -> None:
    plain = ModelInfo(backend="x")
    journal = Journal(GenerateRequest(prompt="ab", sampling=GREEDY), plain)
    given_to(journal, spelled("abc")[:3])
    plan = journal.continuation(plain, None)
    with pytest.raises(BackendFailed, match="differently"):
        _ = [new for event in spelled(other) for new in plan.pass_on(event)]


@pytest.mark.parametrize(
    ("request_", "delta", "why"),
    [
        (
            GenerateRequest(prompt="ab", sampling=SamplingParams(temperature=0.0)),
            Delta(tool_calls=(ToolCallDelta(id="1", name="f"),), token_ids=(1,)),
            "call a tool",
        ),
        (GenerateRequest(prompt="ab"), Delta(text="a", token_ids=(97,)), "takes no seed"),
    ],
)
def test_what_cannot_be_exact_is_refused(request_: GenerateRequest, delta: Delta, why: str) -> None:
    plain = ModelInfo(backend="x")
    journal = Journal(request_, plain)
    given_to(journal, [Started(prompt_tokens=1), delta])
    with pytest.raises(BackendFailed, match=why) as caught:
        journal.continuation(plain, None)
    assert caught.value.retryable


def test_sampling_without_a_seed_gets_one_before_it_is_sent() -> None:
    journal = Journal(GenerateRequest(prompt="ab"), INFO)
    assert journal.request.sampling.seed is not None
    fixed = GenerateRequest(prompt="ab", sampling=SamplingParams(seed=7))
    assert Journal(fixed, INFO).request is fixed


# --- statistics ----------------------------------------------------------------------------------


def test_counters_never_fall_when_a_worker_dies() -> None:
    tally = Tally()
    bounds = (1.0,)
    tally.see(
        BackendStats(
            requests=5,
            finished=3,
            running=2,
            kv_used=100,
            ttft=Histogram(bounds=bounds, counts=(2, 1), total=4.0),
        )
    )
    before = tally.total()
    tally.bury(2)
    after = tally.total()
    assert (after.requests, after.finished, after.failed) == (5, 3, 2)
    assert (after.running, after.kv_used) == (0, 0)
    assert after.ttft == before.ttft
    tally.see(BackendStats(requests=1, ttft=Histogram(bounds=bounds, counts=(1, 0), total=0.5)))
    assert tally.total().requests == 6
    assert tally.total().ttft == Histogram(bounds=bounds, counts=(3, 1), total=4.5)
