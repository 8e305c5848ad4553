"""The official OpenAI client against `themis serve` with the bundled model, on each backend."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from urllib.parse import urlsplit

import openai
import pytest

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
QUESTIONS = [
    f"{start} {country}{mark}"
    for start in ("What is the capital of", "capital of", "Tell me about", "Wo liegt")
    for country in ("France", "Italy", "Spain", "Germany")
    for mark in ("?", "")
]


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, question: str) -> str:
    completion = client.chat.completions.create(
        model="tiny",
        temperature=0,
        max_tokens=48,
        messages=[{"role": "user", "content": question}],
    )
    return completion.choices[0].message.content or ""


def test_one_answer(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="tiny", temperature=0, messages=[{"role": "user", "content": QUESTION}]
    )
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    usage = completion.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        temperature=0,
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None


def test_32_at_once_equal_each_alone(server: str, client: openai.OpenAI) -> None:
    assert len(QUESTIONS) == 32
    alone = [ask(client, question) for question in QUESTIONS]

    async def one(everyone: openai.AsyncOpenAI, question: str, stream: bool) -> str:
        messages = [{"role": "user", "content": question}]
        arguments = {"model": "tiny", "temperature": 0, "max_tokens": 48, "messages": messages}
        if not stream:
            completion = await everyone.chat.completions.create(**arguments)  # type: ignore[call-overload]
            return completion.choices[0].message.content or ""
        parts = []
        async for chunk in await everyone.chat.completions.create(**arguments, stream=True):  # type: ignore[call-overload]
            parts.append(chunk.choices[0].delta.content or "")
        return "".join(parts)

    async def all_at_once(stream: bool) -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server}/v1", api_key="none", max_retries=0
        ) as everyone:
            return await asyncio.gather(*(one(everyone, q, stream) for q in QUESTIONS))

    assert asyncio.run(all_at_once(stream=False)) == alone
    assert asyncio.run(all_at_once(stream=True)) == alone


def test_errors_have_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="tyni", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    assert "Did you mean 'tiny'" in missing.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="hi", suffix="!")
    assert refused.value.code == "unsupported_field"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="word " * 4000)
    assert long.value.code == "prompt_too_long"


def test_models_and_health(server: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    with urllib.request.urlopen(f"{server}/health", timeout=10) as response:
        assert response.status == 200


def test_a_vanished_client_leaves_no_trace(server: str, client: openai.OpenAI) -> None:
    address = urlsplit(server)
    body = json.dumps(
        {"model": "tiny", "prompt": "Once", "max_tokens": 900, "stream": True, "ignore_eos": True}
    ).encode()
    for _ in range(20):  # More than there are sequences: each one must become free again.
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: themis\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert ask(client, QUESTION) == ANSWER
