"""Output validators see each text of an answer, and the caller gets all that they let through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.errors import RequestRejected
from themis_core.messages import (
    Completion,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Started,
    ToolCallDelta,
    Usage,
)
from themis_core.runtime.gather import gather
from themis_core.runtime.release import Release
from themis_testkit.fakes import FakeValidator
from themis_testkit.strategies import event_streams

ASK = GenerateRequest(prompt="hi")


class Lagging(FakeValidator):
    """Lets everything through, `lag` characters late; remembers each text that it saw."""

    def __init__(self, lag: int, change: Callable[[str], str] = str) -> None:
        super().__init__("x")
        self.lag = lag
        self.change = change

    def check_output(self, request: GenerateRequest) -> LaggingCheck:  # type: ignore[override]
        return LaggingCheck(self)


class LaggingCheck:
    def __init__(self, owner: Lagging) -> None:
        self.owner = owner
        self.held = self.seen = ""

    def push(self, text: str) -> str:
        self.seen += text
        text = self.held + self.owner.change(text)
        keep = max(len(text) - self.owner.lag, 0)
        self.held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        self.owner.outputs.append(self.seen)
        return self.held


def released(
    validators: list[FakeValidator], events: Iterable[GenerateEvent]
) -> list[GenerateEvent]:
    release = Release(validators, ASK)
    return [out for event in events for out in release.pass_on(event)]


def gathered(events: Iterable[GenerateEvent]) -> Completion:
    async def replay() -> AsyncIterator[GenerateEvent]:
        for event in events:
            yield event

    return asyncio.run(gather(replay(), "id", "m"))


def texts(completion: Completion) -> list[str]:
    """All texts of an answer that are checked."""
    return [
        text
        for choice in completion.choices
        for text in (
            choice.text,
            *([choice.reasoning] if choice.reasoning else []),
            *(call.arguments for call in choice.tool_calls if call.arguments),
        )
    ]


@given(event_streams(), st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_nothing_is_lost_doubled_or_mixed(stream: list[GenerateEvent], lags: list[int]) -> None:
    validators = [Lagging(lag) for lag in lags]
    out = released(list(validators), stream)
    whole, passed = gathered(stream), gathered(out)
    # Tokens would tell what a check holds back, so they are left out; nothing else is.
    bare = [msgspec.structs.replace(c, token_ids=(), logprobs=()) for c in whole.choices]
    assert list(passed.choices) == bare
    assert passed.usage == whole.usage
    for validator in validators:
        assert sorted(validator.outputs) == sorted(texts(whole))
    # Each choice ends with its `Finished`, and the order of the other events is kept.
    ends = [type(e) for e in out if not isinstance(e, Delta)]
    assert ends == [type(e) for e in stream if not isinstance(e, Delta)]
    finished: set[int] = set()
    for event in out:
        if isinstance(event, Delta):
            assert event.index not in finished
        elif isinstance(event, Finished):
            finished.add(event.index)


@given(event_streams())
def test_a_changing_check_sees_what_the_one_before_it_lets_through(
    stream: list[GenerateEvent],
) -> None:
    first, second = Lagging(2, change=lambda text: text.replace("0", "00")), Lagging(1)
    passed = gathered(released([first, second], stream))
    assert texts(passed) == [text.replace("0", "00") for text in texts(gathered(stream))]
    assert sorted(second.outputs) == sorted(texts(passed))


@given(event_streams(max_choices=1))
def test_without_validators_everything_passes_as_it_is(stream: list[GenerateEvent]) -> None:
    assert released([], stream) == stream


def two_letters(event: GenerateEvent) -> GenerateEvent:
    """The same event with texts of two letters, in which short words are found often."""

    def fold(text: str) -> str:
        return "".join("ab"[ord(letter) % 2] for letter in text)

    if not isinstance(event, Delta):
        return event
    calls = [msgspec.structs.replace(c, arguments=fold(c.arguments)) for c in event.tool_calls]
    return msgspec.structs.replace(
        event, text=fold(event.text), reasoning=fold(event.reasoning), tool_calls=tuple(calls)
    )


@given(event_streams(), st.text("ab", min_size=2, max_size=4))
def test_the_verdict_is_that_on_the_whole_texts(stream: list[GenerateEvent], word: str) -> None:
    events = [two_letters(event) for event in stream]
    guilty = any(word in text for text in texts(gathered(events)))
    validator = FakeValidator(word)
    try:
        passed = gathered(released([validator], events))
    except RequestRejected:
        assert guilty
    else:
        assert not guilty
        assert texts(passed) == texts(gathered(events))


def answer(*deltas: Delta) -> list[GenerateEvent]:
    usage = Usage(prompt_tokens=1)
    return [Started(prompt_tokens=1), *deltas, Finished(reason="stop"), Done(usage=usage)]


@pytest.mark.parametrize(
    "deltas",
    [
        (Delta(text="se"), Delta(text="cret")),
        (Delta(reasoning="se"), Delta(text="no"), Delta(reasoning="cret")),
        (
            Delta(tool_calls=(ToolCallDelta(index=1, id="c", name="f", arguments="se"),)),
            Delta(tool_calls=(ToolCallDelta(index=1, arguments="cret"),)),
        ),
    ],
)
def test_every_kind_of_text_is_judged(deltas: tuple[Delta, ...]) -> None:
    with pytest.raises(RequestRejected):
        released([FakeValidator("secret")], answer(*deltas))


def test_texts_are_not_judged_across_their_bounds() -> None:
    calls = tuple(ToolCallDelta(index=i, id=str(i), name="f", arguments="se") for i in (0, 1))
    deltas = (Delta(reasoning="se"), Delta(text="cret"), Delta(tool_calls=calls))
    passed = gathered(released([FakeValidator("secret")], answer(*deltas)))
    assert texts(passed) == ["cret", "se", "se", "se"]
    assert [(call.id, call.name) for call in passed.choices[0].tool_calls] == [
        ("0", "f"),
        ("1", "f"),
    ]


def test_an_empty_answer_is_judged_too() -> None:
    validator = Lagging(0)
    released([validator], answer())
    assert validator.outputs == [""]
