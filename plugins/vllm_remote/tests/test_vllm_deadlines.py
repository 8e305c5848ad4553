"""What waits besides a stream, and can be ended: its repetition, looking for a better error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from themis_core.errors import BackendClosed, DeadlineExceeded, InvalidRequest
from themis_core.messages import ChatMessage, GenerateRequest, SamplingParams
from themis_testkit.conformance.base import complete, eventually
from themis_vllm_remote import resuming

from .conftest import Body, connected
from .test_vllm_faults import Reader
from .test_vllm_http import asked
from .upstream import Upstream

Run = Callable[[Body], None]
CHAT = GenerateRequest(
    messages=(ChatMessage(role="user", content="x"),), sampling=SamplingParams(max_tokens=4)
)


async def stall() -> None:
    await asyncio.Event().wait()


def test_a_refusal_stands_if_nothing_better_is_found(with_upstream: Run) -> None:
    """The chat is refused, and counting its tokens fails with another error."""

    async def body(upstream: Upstream) -> None:
        async with connected(upstream) as backend:
            with pytest.raises(InvalidRequest, match="no chats here"):
                await complete(backend, CHAT)

    with_upstream(body)


def test_looking_for_a_better_error_ends_with_the_deadline(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream) as backend:
            upstream.on_tokenize = stall
            with pytest.raises(DeadlineExceeded):
                await complete(backend, msgspec.structs.replace(CHAT, timeout=0.3))

    with_upstream(body)


def test_looking_for_a_better_error_ends_with_the_backend(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream) as backend:
            counting = asyncio.Event()

            async def count() -> None:
                counting.set()
                await stall()

            upstream.on_tokenize = count
            waiting = asyncio.create_task(complete(backend, CHAT))
            await counting.wait()
            await backend.aclose()
            with pytest.raises(BackendClosed):
                await waiting

    with_upstream(body)


@pytest.mark.parametrize("closed", [False, True])
def test_the_pause_before_a_stream_is_resumed_can_be_ended(
    with_upstream: Run, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    monkeypatch.setattr(resuming, "_PAUSE", 3600.0)

    async def body(upstream: Upstream) -> None:
        async def is_cut_off() -> bool:
            return len(upstream.bodies) == 1 and upstream.running == 0

        async with connected(upstream, resume=True) as backend:
            reader = Reader()
            upstream.on_event = reader.cut_off
            request = asked() if closed else msgspec.structs.replace(asked(), timeout=2.0)
            reading = asyncio.create_task(reader.read(backend, request))
            await eventually(is_cut_off, what="the stream was cut off")
            if closed:
                await backend.aclose()
            with pytest.raises(BackendClosed if closed else DeadlineExceeded):
                await reading
            assert reader.seen == [10, 11]

    with_upstream(body)
