"""What the official client sends arrives in the core's request, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from themis_core.messages import Constraint, NamedTool

from .conftest import Door, Row

USER: list[Any] = [{"role": "user", "content": "hi"}]


def test_every_sampling_field_arrives(door: Door) -> None:
    door.client.chat.completions.create(
        model="m",
        messages=USER,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.75,
        seed=11,
        n=2,
        stop=["a", "b"],
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={"7": 3},
        logprobs=True,
        top_logprobs=2,
        extra_body={
            "top_k": 4,
            "min_p": 0.25,
            "typical_p": 0.5,
            "truncate_prompt_tokens": 12,
            "cache_salt": "mine",
            "repetition_penalty": 1.5,
            "min_tokens": 1,
            "ignore_eos": True,
            "stop_token_ids": [8],
            "priority": 3,
            "adapters": [{"name": "legal", "weight": 0.5}],
        },
    )
    request = door.runtime.requests[0]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.75)
    assert (sampling.seed, sampling.n, sampling.stop) == (11, 2, ("a", "b"))
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert (sampling.logit_bias, sampling.logprobs) == ({7: 3.0}, 2)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (4, 0.25, 1.5)
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (1, True, (8,))
    assert sampling.typical_p == 0.5
    assert (request.truncate_prompt_tokens, request.cache_salt) == (12, "mine")
    assert request.priority == 3
    assert (request.adapters[0].name, request.adapters[0].weight) == ("legal", 0.5)


def test_without_a_model_the_default_model_answers(door: Door) -> None:
    door.runtime.rows = [Row(name="other"), Row(name="m")]
    assert door.post("/v1/completions", {"prompt": "x"}).json()["model"] == "m"
    streamed = door.post("/v1/completions", {"prompt": "x", "stream": True}).text
    assert streamed.count('"model":"m"') == streamed.count("data: ") - 1
    assert door.runtime.requests[0].model == ""


def test_openais_defaults(door: Door) -> None:
    door.client.chat.completions.create(model="m", messages=USER)
    sampling = door.runtime.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, None)
    assert sampling.logprobs is None


def test_tools_and_conversation(door: Door) -> None:
    door.client.chat.completions.create(
        model="m",
        messages=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "7"},
        ],
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice="auto",
    )
    request = door.runtime.requests[0]
    assert [m.role for m in request.messages] == ["system", "user", "assistant", "tool"]
    assert request.messages[1].content == "a\nb"
    assert request.messages[2].tool_calls[0].name == "f"
    assert request.messages[3].tool_call_id == "c1"
    assert request.tools[0].parameters == {"type": "object"}


def test_an_answer_can_be_sent_back(door: Door) -> None:
    reply = door.client.chat.completions.create(model="m", messages=USER)
    history: list[Any] = [*USER, reply.choices[0].message.model_dump(), *USER]
    door.client.chat.completions.create(model="m", messages=history)
    assert door.runtime.requests[-1].messages[1].content == "Hello"


def test_tool_choice_none_drops_the_tools(door: Door) -> None:
    door.client.chat.completions.create(
        model="m",
        messages=USER,
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="none",
    )
    assert door.runtime.requests[0].tools == ()


def test_response_format(door: Door) -> None:
    create = door.client.chat.completions.create
    schema: dict[str, Any] = {"type": "array"}
    create(
        model="m",
        messages=USER,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    create(model="m", messages=USER, response_format={"type": "json_object"})
    create(model="m", messages=USER, response_format={"type": "text"})
    assert [request.constraint for request in door.runtime.requests] == [
        Constraint(kind="json_schema", value=schema),
        Constraint(kind="json_schema", value={"type": "object"}),
        None,
    ]


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "f", "strict": True}},
    {"type": "function", "function": {"name": "g"}},
]


def test_tool_choice(door: Door) -> None:
    create = door.client.chat.completions.create
    create(model="m", messages=USER, tools=TOOLS)
    create(model="m", messages=USER, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    create(
        model="m",
        messages=USER,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "g"}},
        parallel_tool_calls=True,
    )
    create(model="m", messages=USER, parallel_tool_calls=False)
    choices = [(r.tool_choice, r.parallel_tool_calls) for r in door.runtime.requests]
    assert choices == [
        ("auto", True),
        ("required", False),
        (NamedTool(name="g"), True),
        ("auto", True),
    ]


def test_template_options(door: Door) -> None:
    create = door.client.chat.completions.create
    create(
        model="m",
        messages=USER,
        reasoning_effort="low",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    create(model="m", messages=USER)
    assert [request.template_options for request in door.runtime.requests] == [
        {"enable_thinking": False, "reasoning_effort": "low"},
        {},
    ]


def test_reasoning_can_be_sent_back(door: Door) -> None:
    history: list[Any] = [
        *USER,
        {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"},
        {"role": "assistant", "reasoning_content": "hm"},
        *USER,
    ]
    door.client.chat.completions.create(model="m", messages=history)
    messages = door.runtime.requests[0].messages
    assert [(m.content, m.reasoning) for m in messages[1:3]] == [("4", "2 + 2"), ("", "hm")]


@pytest.mark.parametrize(
    ("given", "constraint"),
    [
        ({"json": {"type": "array"}}, Constraint(kind="json_schema", value={"type": "array"})),
        ({"json": '{"type": "null"}'}, Constraint(kind="json_schema", value={"type": "null"})),
        ({"json_object": True}, Constraint(kind="json_schema", value={"type": "object"})),
        ({"regex": "a+", "json": None}, Constraint(kind="regex", value="a+")),
        ({"choice": ["a", "b"]}, Constraint(kind="choice", value=["a", "b"])),
        ({"grammar": 'start: "::="'}, Constraint(kind="lark", value='start: "::="')),
        ({"grammar": '# x\n root ::= "a"'}, Constraint(kind="gbnf", value='# x\n root ::= "a"')),
        ({"lark": "a ::= b"}, Constraint(kind="lark", value="a ::= b")),
        ({"gbnf": "x"}, Constraint(kind="gbnf", value="x")),
    ],
)
def test_structured_outputs(door: Door, given: dict[str, Any], constraint: Constraint) -> None:
    extra = {"structured_outputs": given, "response_format": {"type": "text"}}
    door.client.chat.completions.create(model="m", messages=USER, extra_body=extra)
    door.client.completions.create(model="m", prompt="x", extra_body=extra)
    assert [request.constraint for request in door.runtime.requests] == [constraint] * 2
