from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_core.errors import InvalidRequest
from themis_core.messages import ChatMessage, Delta, Finished, GenerateRequest, SamplingParams
from themis_echo.answer import decode, encode, make_answer
from themis_echo.backend import EchoBackend
from themis_echo.plugin import themis_backends
from themis_echo.settings import EchoSettings


def answer(request: GenerateRequest, **settings: Any) -> str:
    async def main() -> str:
        backend = EchoBackend(EchoSettings(**settings))
        await backend.start()
        try:
            events = [event async for event in backend.generate(request)]
        finally:
            await backend.aclose()
        return "".join(event.text for event in events if isinstance(event, Delta))

    return asyncio.run(main())


def test_it_answers_with_the_prompt() -> None:
    assert answer(GenerateRequest(prompt="Hello, world!")) == "Hello, world!"


def test_prefix() -> None:
    assert answer(GenerateRequest(prompt="Hi"), prefix="You said: ") == "You said: Hi"


def test_it_answers_with_the_last_words_of_the_user() -> None:
    messages = (
        ChatMessage(role="user", content="First"),
        ChatMessage(role="assistant", content="Second"),
        ChatMessage(role="user", content="Third"),
        ChatMessage(role="tool", content="Fourth"),
    )
    assert answer(GenerateRequest(messages=messages)) == "Third"


@pytest.mark.parametrize(
    "message", [ChatMessage(role="system", content="x"), ChatMessage(role="user")]
)
def test_without_words_of_the_user_it_refuses(message: ChatMessage) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answer(GenerateRequest(messages=(message,)))
    assert caught.value.field == "messages"


def test_a_character_cut_by_max_tokens_becomes_a_replacement() -> None:
    request = GenerateRequest(prompt="aé", sampling=SamplingParams(max_tokens=2))
    assert answer(request) == "a\N{REPLACEMENT CHARACTER}"


def test_the_stop_string_that_ends_first_wins() -> None:
    result = make_answer(encode("one two three"), 100, ("wo thr", "tw", "three"))
    assert result.end == Finished(reason="stop", matched="tw")
    assert (result.text, decode(result.token_ids)) == ("one ", "one tw")


@settings(deadline=None)  # It fails on a busy machine.
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 40))
def test_deltas_join_to_the_answer(text: str, limit: int) -> None:
    result = make_answer(encode(text), limit, ())
    deltas = list(result.deltas())
    assert "".join(delta.text for delta in deltas) == result.text == decode(encode(text)[:limit])
    assert tuple(t for delta in deltas for t in delta.token_ids) == result.token_ids
    assert len(result.token_ids) <= limit


def test_the_descriptor() -> None:
    (plugin,) = themis_backends()
    assert (plugin.name, plugin.settings) == ("echo", EchoSettings)
