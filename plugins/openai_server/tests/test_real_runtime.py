"""The same door before the real runtime, with the echo plugin as its backend."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

import themis_core
from themis_openai_server.ports import RuntimePort
from themis_openai_server.server import create
from themis_openai_server.settings import OpenAISettings

from .conftest import WAIT_S

pytest.importorskip("themis_echo")
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings


def test_echo() -> None:
    async def main() -> None:
        backends = {"echo": EchoBackend(EchoSettings())}
        async with themis_core.open(backends=backends) as runtime:
            port: RuntimePort = runtime  # Checked by mypy: the port is a part of the runtime.
            door = create(OpenAISettings(), port, "127.0.0.1", 0)
            await door.start()
            try:
                async with openai.AsyncOpenAI(
                    base_url=f"{door.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S
                ) as client:
                    await _ask(client)
            finally:
                await door.aclose()

    asyncio.run(main())


async def _ask(client: openai.AsyncOpenAI) -> None:
    user: list[Any] = [{"role": "user", "content": "one two"}]
    chat = await client.chat.completions.create(model="echo", messages=user)
    assert chat.choices[0].message.content == "one two"
    stream = await client.chat.completions.create(model="echo", messages=user, stream=True)
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == "one two"
    texts = await client.completions.create(model="echo", prompt=["a b", "c"], max_tokens=2)
    assert [choice.text for choice in texts.choices] == ["a ", "c"]
    assert [choice.finish_reason for choice in texts.choices] == ["length", "stop"]
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="ecko", messages=user)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as unsupported:
        await client.chat.completions.create(model="echo", messages=user, logprobs=True)
    assert unsupported.value.code == "unsupported_field"
    assert unsupported.value.param == "logprobs"
    models = await client.models.list()
    assert [model.id for model in models.data] == ["echo"]
