"""What bodies are refused, which field is named, and that none is ignored in silence."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.errors import InvalidRequest, UnsupportedField
from themis_openai_server import convert
from themis_openai_server.body import ChatBody, CompletionBody, EmbeddingBody
from themis_openai_server.decode import decode
from themis_openai_server.policy import IGNORED, REFUSED, ignored_fields

from .conftest import Door, OpenDoor

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def chat(**fields: Any) -> convert.Job:
    raw = msgspec.json.encode({"messages": USER, **fields})
    return convert.chat_job(decode(raw, ChatBody, "refuse")[0], None)


def completion(**fields: Any) -> convert.Job:
    raw = msgspec.json.encode({"prompt": "x", **fields})
    return convert.completion_job(decode(raw, CompletionBody, "refuse")[0], None)


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", **fields}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": []}, "temperature"),
        ({"temperature": -1}, "sampling.temperature"),
        ({"top_p": 0}, "sampling.top_p"),
        ({"seed": -1}, "sampling.seed"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ""}, "sampling.stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        (message(), "messages[0].content"),
        (message(content=[{"type": "text"}]), "messages[0].content[0].text"),
        (message(content="x", tool_call_id="c"), "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            message(
                content="x",
                tool_calls=[{"id": "c", "function": {"name": "f", "arguments": ""}}],
            ),
            "messages[0]",
        ),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": "never"}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": named("x"), "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {**named("f"), "x": 1}, "tools": [TOOL]}, "tool_choice"),
        (
            {
                "tool_choice": "required",
                "tools": [TOOL],
                "response_format": {"type": "json_object"},
            },
            "tool_choice",
        ),
        (message(content="x", reasoning_content="y"), "messages[0].reasoning_content"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens"),
        ({"typical_p": 0}, "sampling.typical_p"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            "reasoning_effort",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "text", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_wrong_values_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.field == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            message(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
            "messages[0].content[0].type",
        ),
        (
            message(content=[{"type": "text", "text": "a", "file": {}}]),
            "messages[0].content[0].file",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]},
            "messages[0].audio",
        ),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"max_token": 3}, "max_token"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"messages": [{"role": "user", "content": "x", "contnt": 1}]}, "messages[0].contnt"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        chat(**fields)
    assert caught.value.field == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "s"}, "suffix"),
        ({"best_of": 3}, "best_of"),
    ],
)
def test_completions_refuse(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        completion(**fields)
    assert caught.value.field == param


@pytest.mark.parametrize(
    "prompt", ["", [], [""], [[]], ["a", 1], [1, [2]], [-1], [2**31], None, [1.5], {}, ["a"] * 1025]
)
def test_prompts_that_are_none(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=prompt)
    assert str(caught.value.field).startswith("prompt")


def test_nulls_and_harmless_values_ask_for_nothing() -> None:
    every_null = dict.fromkeys(set(ChatBody.__struct_fields__) - {"messages"})
    assert msgspec.structs.replace(
        chat(**every_null).requests[0], request_id=""
    ) == msgspec.structs.replace(chat().requests[0], request_id="")
    completion(echo=False, suffix="", best_of=2, n=2)
    chat(modalities=["text"], parallel_tool_calls=True, top_k=-1)


def test_every_field_is_honoured_refused_or_reported() -> None:
    """A field that is added to a body must be put somewhere; this is the list of the honoured."""
    honoured = set(convert._SAMPLING) | {
        "model",
        "stream",
        "stream_options",
        "stop",
        "stop_token_ids",
        "top_k",
        "priority",
        "return_token_ids",
        "response_format",
        "adapters",
        "messages",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
        "chat_template_kwargs",
        "truncate_prompt_tokens",
        "cache_salt",
        "structured_outputs",
        "prompt",
        "best_of",
        "input",
        "encoding_format",
    }
    for kind in (ChatBody, CompletionBody, EmbeddingBody):
        assert set(kind.__struct_fields__) <= honoured | set(REFUSED) | set(IGNORED)
    assert not honoured & (set(REFUSED) | set(IGNORED))


def test_ignored_fields_are_listed(door: Door) -> None:
    response = door.chat(user="u", metadata={"a": "b"}, store=False, stream=True)
    assert response.status_code == 200
    assert response.headers["x-themis-ignored-fields"] == "user, metadata, store"
    assert "x-themis-ignored-fields" not in door.chat().headers


def test_ignored_stream_option() -> None:
    body = ChatBody(messages=[], stream_options=None)
    assert ignored_fields(body) == ()
    options = {"include_obfuscation": False}
    raw = msgspec.json.encode({"messages": USER, "stream_options": options})
    decoded, _ = decode(raw, ChatBody, "refuse")
    assert ignored_fields(decoded) == ("stream_options.include_obfuscation",)


def test_unknown_fields_are_refused_with_a_guess(door: Door) -> None:
    response = door.chat(temprature=1)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_field", "temprature")
    assert "Did you mean 'temperature'?" in error["message"]


def test_unknown_fields_can_be_reported_instead(open_door: OpenDoor) -> None:
    door = open_door(unknown_fields="report")
    odd = {"a\r\nset-cookie: x": 1, "ü": 2, "messages": [{"role": "user", "content": "x", "z": 1}]}
    response = door.chat(**odd)
    assert response.status_code == 200
    listed = response.headers["x-themis-ignored-fields"].split(", ")
    assert listed == ["messages[0].z", "a%0D%0Aset-cookie%3A%20x", "%C3%BC"]
    assert "set-cookie" not in response.headers
    many = door.chat(**{f"x{i}": 1 for i in range(100)})
    assert many.headers["x-themis-ignored-fields"].endswith("and 68 more")
    wrong = door.chat(max_tokens="x", other=1)
    assert wrong.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages":\xff}',
        b'{"user":"\xff\xfe"}',
        b'{"user":"\\ud800"}',
        b'{"user":' + b"[" * 100_000,
        b'{"user":' + b"[" * 900 + b"]" * 900 + b"}",
        b"[]",
        b"7",
        b"null",
        b'{"messages":[{"role":"user","content":"x"}],"user":1e999}',
        b'{"messages":' + b"[" * 400 + b"]" * 400 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_broken_json(door: Door, raw: bytes, path: str) -> None:
    response = door.post(path, raw)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_fields = st.sampled_from(
    sorted({*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__, "input", "nonsense"})
)
_bodies = st.dictionaries(_fields, _json, max_size=5)


@given(
    body=_bodies,
    good=st.booleans(),
    mode=st.sampled_from(["refuse", "report"]),
)
def test_any_json_is_a_request_or_an_error_of_the_caller(body: Any, good: bool, mode: Any) -> None:
    base: dict[str, Any] = {"messages": USER, "prompt": "x", "input": "x"} if good else {}
    for kind, make in (
        (ChatBody, convert.chat_job),
        (CompletionBody, convert.completion_job),
        (EmbeddingBody, convert.embed_request),
    ):
        needed = {k: v for k, v in base.items() if k in kind.__struct_fields__}
        _decodes_or_refuses(msgspec.json.encode({**needed, **body}), kind, make, mode)


@given(raw=st.binary(max_size=60))
def test_any_bytes_are_an_error_of_the_caller(raw: bytes) -> None:
    _decodes_or_refuses(raw, ChatBody, convert.chat_job, "refuse")


def _decodes_or_refuses(raw: bytes, kind: Any, make: Any, mode: Any) -> None:
    with suppress(InvalidRequest, UnsupportedField):
        make(decode(raw, kind, mode)[0], None)
