"""Tool calls and reasoning, as the official client reads them, whole and streamed."""

from __future__ import annotations

from typing import Any

import pytest

from themis_core.messages import Delta, Done, Finished, Started, TokenLogprob, ToolCallDelta

from .conftest import USAGE, Door

USER: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "f"}}]


def script(*deltas: Delta, reason: Any = "tool_calls") -> list[Any]:
    return [Started(prompt_tokens=5), *deltas, Finished(reason=reason), Done(usage=USAGE)]


FIRST = ToolCallDelta(index=0, id="call_1", name="f", arguments='{"a')
CALLS = script(
    Delta(token_ids=(1,)),
    Delta(tool_calls=(FIRST,), token_ids=(2,)),
    Delta(
        tool_calls=(
            ToolCallDelta(index=0, arguments='": 1}'),
            ToolCallDelta(index=1, id="call_2", name="g"),
        ),
        token_ids=(3,),
    ),
    Delta(tool_calls=(ToolCallDelta(index=1, arguments="{}"),), token_ids=(4, 5)),
)
EXPECTED = [("call_1", "f", '{"a": 1}'), ("call_2", "g", "{}")]


def test_calls(door: Door) -> None:
    door.runtime.script = CALLS
    reply = door.client.chat.completions.create(model="m", messages=USER, tools=TOOLS)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls: list[Any] = choice.message.tool_calls or []
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == EXPECTED
    assert {c.type for c in calls} == {"function"}
    history: list[Any] = [*USER, choice.message.model_dump()]
    door.client.chat.completions.create(model="m", messages=history)
    sent = door.runtime.requests[-1].messages[1].tool_calls
    assert [(c.id, c.name, c.arguments) for c in sent] == EXPECTED


def test_streamed_calls(door: Door) -> None:
    door.runtime.script = CALLS
    chunks = list(
        door.client.chat.completions.create(model="m", messages=USER, tools=TOOLS, stream=True)
    )
    assert chunks[0].choices[0].delta.content is None
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    shape = [
        (p.index, p.id, p.type, p.function.name, p.function.arguments) for p in pieces if p.function
    ]
    assert shape == [
        (0, "call_1", "function", "f", '{"a'),
        (0, None, None, None, '": 1}'),
        (1, "call_2", "function", "g", ""),
        (1, None, None, None, "{}"),
    ]
    assert [c.choices[0].finish_reason for c in chunks] == [
        *[None] * (len(chunks) - 1),
        "tool_calls",
    ]


def test_the_client_s_stream_helper_joins_calls(door: Door) -> None:
    door.runtime.script = CALLS
    with door.client.chat.completions.stream(model="m", messages=USER, tools=TOOLS) as stream:
        stream.until_done()
        message = stream.get_final_completion().choices[0].message
    assert message.content is None
    calls: list[Any] = message.tool_calls or []
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == EXPECTED


def test_reasoning(door: Door) -> None:
    door.runtime.script = script(
        Delta(reasoning="2 "), Delta(reasoning="+ 2", text="Four"), Delta(text="."), reason="stop"
    )
    create = door.client.chat.completions.create
    message = create(model="m", messages=USER).choices[0].message.model_dump()
    assert (message["content"], message["reasoning_content"]) == ("Four.", "2 + 2")
    deltas = [
        chunk.choices[0].delta.model_dump(exclude_unset=True)
        for chunk in create(model="m", messages=USER, stream=True)
    ]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "2 "},
        {"reasoning_content": "+ 2", "content": "Four"},
        {"content": "."},
        {},
    ]


def test_text_beside_calls_is_content(door: Door) -> None:
    door.runtime.script = script(Delta(text="Well.", tool_calls=(FIRST,)))
    reply = door.client.chat.completions.create(model="m", messages=USER, tools=TOOLS)
    assert reply.choices[0].message.content == "Well."


def test_an_answer_without_calls_has_none(door: Door) -> None:
    message = door.chat(tools=TOOLS).json()["choices"][0]["message"]
    assert message == {"content": "Hello", "role": "assistant", "refusal": None}


@pytest.mark.parametrize("extra", [{"return_token_ids": True}, {"logprobs": True}])
def test_calls_with_details(door: Door, extra: dict[str, Any]) -> None:
    logprobs = (TokenLogprob(token_id=2, token=b"x", logprob=-1.0),)
    door.runtime.script = script(Delta(tool_calls=(FIRST,), token_ids=(2,), logprobs=logprobs))
    chunks = list(
        door.client.chat.completions.create(
            model="m", messages=USER, tools=TOOLS, stream=True, extra_body=extra
        )
    )
    choice: Any = chunks[1].choices[0]
    assert choice.delta.tool_calls[0].function.arguments == '{"a'
    if "logprobs" in extra:
        assert [entry.token for entry in choice.logprobs.content] == ["x"]
    else:
        assert choice.token_ids == [2]
