"""A client that goes away frees its sequence within one step: front door, runtime and engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import pytest

import themis_core
from themis_core.messages import GenerateEvent, GenerateRequest
from themis_engine import Batch, EngineBackend
from themis_openai_server.server import create
from themis_openai_server.settings import OpenAISettings
from themis_testkit.fakes.toy_runner import ToyRunner

GATE_STEP = 5


class Watched(EngineBackend):
    """Tells when a generation has been closed."""

    def __init__(self, runner: ToyRunner) -> None:
        super().__init__(lambda: runner, backend="toy")
        self.closed = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        try:
            async for event in (events := super().generate(request)):
                yield event
        finally:
            await events.aclose()
            self.closed.set()


@pytest.mark.parametrize("stream", [True, False])
def test_the_sequence_is_freed_within_one_step(stream: bool) -> None:
    reached, gate = threading.Event(), threading.Event()
    steps = 0

    def stop_at_the_gate(batch: Batch) -> None:
        nonlocal steps
        steps += 1
        if steps == GATE_STEP:
            reached.set()
            assert gate.wait(20)

    runner = ToyRunner(context=2000, kv=2000, before_forward=stop_at_the_gate)
    wanted = {"model": "toy", "prompt": [1, 2], "max_tokens": 1500, "stream": stream}

    async def body() -> None:
        backend = Watched(runner)
        async with themis_core.open(backends={"toy": backend}) as runtime:
            door = create(OpenAISettings(), runtime, "127.0.0.1", 0)
            await door.start()
            try:
                address = urlsplit(door.url)
                _, writer = await asyncio.open_connection(address.hostname, address.port)
                text = json.dumps(wanted).encode()
                writer.write(
                    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
                    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                    % (len(text), text)
                )
                assert await asyncio.to_thread(reached.wait, 20)
                assert (await backend.stats()).running == 1
                writer.close()
                await writer.wait_closed()
                await backend.closed.wait()
                gate.set()
                while (stats := await backend.stats()).running:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                # The step that was under way was finished, and no other was begun.
                assert (stats.steps, stats.cancelled, stats.kv_used) == (GATE_STEP, 1, 0)
            finally:
                gate.set()
                await door.aclose()

    asyncio.run(asyncio.wait_for(body(), 60))
    assert steps == GATE_STEP
    assert runner.closed == 1
