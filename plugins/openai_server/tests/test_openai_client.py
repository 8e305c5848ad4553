"""The official client of OpenAI works, streamed and not, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from themis_core.errors import UnsupportedField
from themis_core.messages import (
    Delta,
    Done,
    Finished,
    Started,
    TokenLogprob,
    Usage,
)

from .conftest import USAGE, WAIT_S, Door, answer

USER: list[Any] = [{"role": "user", "content": "hi"}]
LOGPROBS: list[Any] = [
    Started(prompt_tokens=5),
    Delta(
        text="A",
        token_ids=(1,),
        logprobs=(TokenLogprob(token_id=1, token=b"A", logprob=-0.5, top=((1, b"A", -0.5),)),),
    ),
    Delta(
        text="",
        token_ids=(2,),
        logprobs=(TokenLogprob(token_id=2, token=b"\xc3", logprob=float("-inf")),),
    ),
    Delta(
        text="é",
        token_ids=(3,),
        logprobs=(TokenLogprob(token_id=3, token=b"\xa9", logprob=-0.25),),
    ),
    Finished(reason="length"),
    Done(usage=USAGE),
]


def test_chat(door: Door) -> None:
    reply = door.client.chat.completions.create(model="m", messages=USER)
    assert reply.id.startswith("chatcmpl-")
    assert reply.object == "chat.completion"
    assert reply.model == "m"
    assert reply.created > 0
    assert reply.choices[0].message.content == "Hello"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].logprobs is None
    assert reply.usage is not None
    assert reply.usage.total_tokens == 7
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 3


def test_chat_stream(door: Door) -> None:
    chunks = list(
        door.client.chat.completions.create(
            model="m", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    content = [chunk.choices[0].delta.content for chunk in chunks[1:3]]
    assert content == ["Hel", "lo"]
    assert chunks[3].choices[0].finish_reason == "stop"
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


def test_completion(door: Door) -> None:
    reply = door.client.completions.create(model="m", prompt="hi")
    assert reply.id.startswith("cmpl-")
    assert reply.object == "text_completion"
    assert reply.choices[0].text == "Hello"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 5
    assert door.runtime.requests[0].prompt == "hi"
    assert door.runtime.requests[0].sampling.max_tokens == 16


def test_completion_stream(door: Door) -> None:
    chunks = list(door.client.completions.create(model="m", prompt=[1, 2], stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["Hel", "lo", ""]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert door.runtime.requests[0].prompt == (1, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_async_client(door: Door, stream: bool) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{door.url}/v1", api_key="none", timeout=WAIT_S
        ) as client:
            if not stream:
                reply = await client.chat.completions.create(model="m", messages=USER)
                return reply.choices[0].message.content or ""
            chunks: AsyncIterator[Any] = await client.chat.completions.create(
                model="m", messages=USER, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    assert asyncio.run(ask()) == "Hello"


def test_stream_helper(door: Door) -> None:
    with door.client.chat.completions.stream(model="m", messages=USER) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello"


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(door: Door, stream: bool) -> None:
    door.runtime.script = LOGPROBS
    create = door.client.chat.completions.create
    if stream:
        chunks = create(model="m", messages=USER, logprobs=True, top_logprobs=1, stream=True)
        parts = [c.choices[0].logprobs for c in chunks]
        tokens = [token for part in parts if part for token in part.content or ()]
    else:
        reply = create(model="m", messages=USER, logprobs=True, top_logprobs=1)
        assert reply.choices[0].logprobs is not None
        tokens = list(reply.choices[0].logprobs.content or ())
    assert [token.token for token in tokens] == ["A", "\ufffd", "\ufffd"]
    assert [token.bytes for token in tokens] == [[65], [0xC3], [0xA9]]
    assert [token.logprob for token in tokens] == [-0.5, -9999.0, -0.25]
    assert tokens[0].top_logprobs[0].token == "A"


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs(door: Door, stream: bool) -> None:
    door.runtime.script = LOGPROBS
    create = door.client.completions.create
    if stream:
        chunks = list(create(model="m", prompt="x", logprobs=1, stream=True))
        parts = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    else:
        parts = [
            lp for c in create(model="m", prompt="x", logprobs=1).choices if (lp := c.logprobs)
        ]
    tokens = [token for part in parts for token in part.tokens or ()]
    offsets = [offset for part in parts for offset in part.text_offset or ()]
    assert tokens == ["A", "bytes:\\xc3", "bytes:\\xa9"]
    assert offsets == [0, 1, 1]
    assert [lp for part in parts for lp in part.token_logprobs or ()] == [-0.5, -9999.0, -0.25]
    assert (parts[0].top_logprobs or [{}])[0] == {"A": -0.5}


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(door: Door, stream: bool) -> None:
    door.runtime.script = [
        Started(prompt_tokens=1),
        *answer("one", 1),
        *answer("zero", 0),
        Done(usage=USAGE),
    ]
    create = door.client.chat.completions.create
    if stream:
        texts = {0: "", 1: ""}
        roles = []
        for chunk in create(model="m", messages=USER, n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
            roles += [chunk.choices[0].index] if chunk.choices[0].delta.role else []
        assert sorted(roles) == [0, 1]
    else:
        reply = create(model="m", messages=USER, n=2)
        texts = {c.index: c.message.content or "" for c in reply.choices}
    assert texts == {0: "zero", 1: "one"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2, 3]]])
def test_several_prompts(door: Door, prompt: Any, stream: bool) -> None:
    door.runtime.script = [
        Started(prompt_tokens=1),
        *answer("x", 0),
        *answer("y", 1),
        Done(usage=Usage(prompt_tokens=1, completion_tokens=2)),
    ]
    create = door.client.completions.create
    if stream:
        chunks = list(
            create(
                model="m",
                prompt=prompt,
                n=2,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        usage = chunks[-1].usage
        texts = dict.fromkeys(range(4), "")
        for chunk in chunks[:-1]:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        reply = create(model="m", prompt=prompt, n=2)
        usage = reply.usage
        texts = {c.index: c.text for c in reply.choices}
    assert texts == {0: "x", 1: "y", 2: "x", 3: "y"}
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 4)
    given = {request.prompt for request in door.runtime.requests}
    assert given == {p if isinstance(p, str) else tuple(p) for p in prompt}


def test_token_ids_on_request(door: Door) -> None:
    extra = {"return_token_ids": True}
    reply: Any = door.client.completions.create(model="m", prompt="x", extra_body=extra)
    assert reply.choices[0].token_ids == [1, 2]
    chunks: Any = door.client.completions.create(
        model="m", prompt="x", extra_body=extra, stream=True
    )
    got = [getattr(chunk.choices[0], "token_ids", None) or [] for chunk in chunks]
    assert [token for ids in got for token in ids] == [1, 2]


def test_models(door: Door) -> None:
    listed = door.client.models.list().data
    assert [model.id for model in listed] == ["m", "alias"]
    assert {model.object for model in listed} == {"model"}
    assert door.client.models.retrieve("alias").id == "alias"
    with pytest.raises(openai.NotFoundError) as caught:
        door.client.models.retrieve("no/such")
    assert caught.value.code == "model_not_found"


def test_embeddings(door: Door) -> None:
    door.runtime.vectors = ((0.5, -1.0), (0.25, 2.0))
    for kwargs in ({}, {"encoding_format": "float"}):
        reply = door.client.embeddings.create(model="m", input=["a", "b"], **kwargs)  # type: ignore[arg-type]
        assert [item.embedding for item in reply.data] == [[0.5, -1.0], [0.25, 2.0]]
        assert [item.index for item in reply.data] == [0, 1]
        assert reply.usage.total_tokens == 7
    assert door.runtime.embeds[0].inputs == ("a", "b")


def test_embeddings_unsupported(door: Door) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        door.client.embeddings.create(model="m", input="a")
    assert (caught.value.code, caught.value.param) == ("unsupported_field", "model")


def test_error_before_the_first_token_is_no_stream(door: Door) -> None:
    door.runtime.script = [
        Started(prompt_tokens=1),
        UnsupportedField("No.", field="sampling.top_k"),
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        door.client.chat.completions.create(model="m", messages=USER, stream=True)
    assert (caught.value.code, caught.value.param) == ("unsupported_field", "top_k")
