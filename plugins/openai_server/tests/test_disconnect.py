"""A client that goes away stops its generation at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from themis_core.messages import (
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Started,
    Usage,
)

from .conftest import WAIT_S, Door, LoopThread, Stall

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
START: list[Any] = [Started(prompt_tokens=1), Delta(text="a", token_ids=(1,))]


def no_tasks_of_requests(thread: LoopThread) -> bool:
    """True if only the server itself is left, after the loop has had a few turns."""

    async def turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    thread.run(turns())
    return not any(name.startswith("themis watch") for name in thread.tasks())


@pytest.mark.parametrize("stream", [False, True])
def test_before_the_first_token(door: Door, server_loop: LoopThread, stream: bool) -> None:
    stall = Stall()
    door.runtime.script = [Started(prompt_tokens=1), stall]
    raw = door.send_raw("/v1/chat/completions", {**CHAT, "stream": stream})
    assert stall.reached.wait(WAIT_S)
    raw.close()
    assert door.runtime.closed_early.acquire(timeout=WAIT_S)
    assert no_tasks_of_requests(server_loop)


def test_in_mid_stream(door: Door, server_loop: LoopThread) -> None:
    stall = Stall()
    door.runtime.script = [*START, stall]
    raw = door.send_raw("/v1/chat/completions", {**CHAT, "stream": True})
    received = b""
    while b'"content":"a"' not in received:
        received += raw.recv(4096)
    assert stall.reached.wait(WAIT_S)
    raw.close()
    assert door.runtime.closed_early.acquire(timeout=WAIT_S)
    assert no_tasks_of_requests(server_loop)


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts(door: Door, stream: bool) -> None:
    stalls = [Stall(), Stall()]
    door.runtime.by_prompt = {"a": [stalls[0]], "b": [*START, stalls[1]]}
    raw = door.send_raw("/v1/completions", {"prompt": ["a", "b"], "stream": stream})
    for stall in stalls:
        assert stall.reached.wait(WAIT_S)
    raw.close()
    for _ in stalls:
        assert door.runtime.closed_early.acquire(timeout=WAIT_S)


def test_embeddings(door: Door) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def embed(request: EmbedRequest) -> EmbedResponse:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    door.runtime.embed = embed  # type: ignore[method-assign]
    try:
        raw = door.send_raw("/v1/embeddings", {"input": "x"})
        assert started.wait(WAIT_S)
        raw.close()
        assert cancelled.wait(WAIT_S)
    finally:
        del door.runtime.embed


def test_while_the_client_does_not_read(door: Door) -> None:
    """The server then waits in a write; the generation must end all the same."""
    blocked = threading.Event()
    closed = threading.Event()

    async def generate(request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        loop = asyncio.get_running_loop()
        try:
            while True:
                # If nobody asks for the next event for a while, the write is blocked.
                timer = loop.call_later(0.2, blocked.set)
                await asyncio.sleep(0)
                yield Delta(text="x" * 65536, token_ids=(1,))
                timer.cancel()
        finally:
            closed.set()

    door.runtime.generate = generate  # type: ignore[method-assign]
    try:
        raw = door.send_raw("/v1/chat/completions", {**CHAT, "stream": True})
        assert blocked.wait(WAIT_S)
        assert not closed.is_set()
        raw.close()
        assert closed.wait(WAIT_S)
    finally:
        del door.runtime.generate


def test_a_cancelled_generation_may_clean_up_slowly(door: Door) -> None:
    stall = Stall()
    cleaned = threading.Event()

    async def generate(request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        try:
            yield START[0]
            await stall.wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            cleaned.set()

    door.runtime.generate = generate  # type: ignore[method-assign]
    try:
        raw = door.send_raw("/v1/chat/completions", {**CHAT, "stream": True})
        assert stall.reached.wait(WAIT_S)
        raw.close()
        assert cleaned.wait(WAIT_S)
    finally:
        del door.runtime.generate


def test_a_finished_request_is_not_cancelled(door: Door) -> None:
    """The server says "disconnect" after a response too; that must cancel nothing."""
    outcome: list[str] = []
    done = threading.Event()

    async def generate(request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        try:
            yield Delta(text="a", token_ids=(1,))
            yield Finished(reason="stop")
            yield Done(usage=Usage())
        finally:
            try:
                for _ in range(5):
                    await asyncio.sleep(0)
                outcome.append("cleaned up")
            except asyncio.CancelledError:
                outcome.append("cancelled")
            done.set()

    door.runtime.generate = generate  # type: ignore[method-assign]
    try:
        assert door.chat(stream=True).text.endswith("data: [DONE]\n\n")
        assert done.wait(WAIT_S)
    finally:
        del door.runtime.generate
    assert outcome == ["cleaned up"]


def test_connections_are_kept_alive(door: Door) -> None:
    raw = door.send_raw("/v1/chat/completions", {**CHAT, "stream": True})
    try:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += raw.recv(4096)
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200")
    finally:
        raw.close()
