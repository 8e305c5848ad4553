"""A server that refuses, dies, stalls or lies: the right error, and repetition where it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    DeadlineExceeded,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
)
from themis_core.messages import Delta, GenerateRequest
from themis_testkit.conformance.base import begin, complete, eventually
from themis_vllm_remote.create import remote
from themis_vllm_remote.settings import VllmSettings

from .conftest import Body, connected
from .test_vllm_http import LOCAL, asked
from .upstream import Stream, Upstream

Run = Callable[[Body], None]


class Reader:
    """Reads an answer; `cut_off` resets its connection once two of its tokens were read."""

    def __init__(self, attempts: int = 1) -> None:
        self.seen: list[int] = []
        self._attempts = attempts

    async def read(self, backend: Backend, request: GenerateRequest) -> None:
        async with aclosing(backend.generate(request)) as events:
            async for event in events:
                self.seen.extend(event.token_ids if isinstance(event, Delta) else ())

    async def cut_off(self, stream: Stream) -> None:
        if stream.count == 2 and len(stream.upstream.bodies) <= self._attempts:
            # What was sent but not read yet would be lost with the connection.
            await eventually(self._has_two, what="the client has read two tokens")
            stream.cut()

    async def _has_two(self) -> bool:
        return len(self.seen) == 2


def test_nobody_is_there() -> None:
    async def main() -> None:
        backend = remote(VllmSettings(endpoint="http://127.0.0.1:9", start_timeout=0.3))
        with pytest.raises(ModelLoadFailed, match="nobody answers") as caught:
            await backend.start()
        assert caught.value.field == "endpoint"
        with pytest.raises(BackendClosed):
            _ = backend.info
        await backend.aclose()

    asyncio.run(main())


def test_a_server_that_is_still_starting_is_waited_for(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        upstream.healthy = False
        port = upstream.port
        await upstream.stop()
        backend = remote(
            VllmSettings(endpoint=f"http://127.0.0.1:{port}", start_timeout=20, retries=0)
        )
        starting = asyncio.create_task(backend.start())
        await upstream.start(port)
        done, _ = await asyncio.wait([starting], timeout=0.5)
        assert not done
        upstream.healthy = True
        await starting
        await complete(backend, asked())
        await backend.aclose()

    with_upstream(body)


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_failure_before_the_first_token_is_tried_again(with_upstream: Run, status: int) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream, retries=2) as backend:
            upstream.status = [status, status]
            assert (await complete(backend, asked())).choices[0].token_ids == (10, 11, 12, 13)
            assert len(upstream.bodies) == 3
            upstream.status = [status] * 3
            with pytest.raises(Overloaded if status in (503, 429) else BackendFailed):
                await complete(backend, asked())
            assert len(upstream.bodies) == 6
            stats = await backend.stats()
            assert (stats.requests, stats.finished, stats.failed) == (2, 1, 1)

    with_upstream(body)


@pytest.mark.parametrize("status", [400, 422])
def test_an_error_of_the_request_is_not_tried_again(with_upstream: Run, status: int) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream, breaker_failures=1) as backend:
            upstream.status = [status]
            with pytest.raises(InvalidRequest):
                await complete(backend, asked())
            assert len(upstream.bodies) == 1
            await complete(backend, asked())

    with_upstream(body)


@pytest.mark.parametrize("local", [False, True])
def test_death_in_mid_stream_is_never_repeated(with_upstream: Run, local: bool) -> None:
    """After the first token, a repetition could be another answer."""

    async def body(upstream: Upstream) -> None:
        async with connected(upstream, **(LOCAL if local else {})) as backend:
            reader = Reader()
            upstream.on_event = reader.cut_off
            with pytest.raises(BackendFailed):
                await reader.read(backend, asked())
            assert reader.seen == [10, 11]
            assert len(upstream.bodies) == 1
            upstream.on_event = None
            await complete(backend, asked())

    with_upstream(body)


def test_resume_continues_the_same_answer(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream, resume=True) as backend:
            reader = Reader()
            upstream.on_event = reader.cut_off
            await reader.read(backend, asked())
            assert reader.seen == [10, 11, 12, 13]
            assert len(upstream.bodies) == 2
            stats = await backend.stats()
            assert (stats.requests, stats.finished, stats.failed) == (1, 1, 0)

    with_upstream(body)


def test_resume_never_splices_two_answers(with_upstream: Run) -> None:
    """The second server continues differently: an error, not half of each."""

    async def body(upstream: Upstream) -> None:
        async with connected(upstream, resume=True) as backend:
            reader = Reader()

            async def differ(stream: Stream) -> None:
                await reader.cut_off(stream)
                if len(upstream.bodies) > 1 and stream.count == 0:
                    upstream.bodies[-1]["prompt"][-1] += 1

            upstream.on_event = differ
            with pytest.raises(BackendFailed, match="differently"):
                await reader.read(backend, asked())
            assert reader.seen == [10, 11]

    with_upstream(body)


@pytest.mark.parametrize("at", [0, 2])
def test_a_stream_that_ends_early_is_no_answer(with_upstream: Run, at: int) -> None:
    """Half-closed: the server ends the body properly, but in the middle."""

    async def body(upstream: Upstream) -> None:
        async with connected(upstream, retries=0) as backend:
            upstream.end_at = at
            with pytest.raises(BackendFailed, match="cut off"):
                await complete(backend, asked())

    with_upstream(body)


_EVENTS = {
    b"data: {no json}\n\n": BackendFailed,
    b'data: {"choices": 7}\n\n': BackendFailed,
    b'data: {"choices": [{"index": 0, "finish_reason": "abort"}]}\n\n': BackendFailed,
    b'data: {"error": {"message": "dead", "code": 500}}\n\ndata: [DONE]\n\n': BackendFailed,
    b'data: {"error": {"message": "full", "code": 503}}\n\n': Overloaded,
    b'data: {"error": {"message": "bad", "code": 400, "param": "seed"}}\n\n': InvalidRequest,
    b"data: [DONE]\n\n": BackendFailed,
}


@pytest.mark.parametrize("event", _EVENTS, ids=str)
def test_an_error_in_mid_stream(with_upstream: Run, event: bytes) -> None:
    """As vLLM sends it when its engine has died, and what else could stand there."""

    async def body(upstream: Upstream) -> None:
        async with connected(upstream, retries=0) as backend:
            upstream.says = {1: event}
            with pytest.raises(_EVENTS[event]):
                await complete(backend, asked())

    with_upstream(body)


def test_a_stalled_stream_fails(with_upstream: Run) -> None:
    async def stall(stream: Stream) -> None:
        if stream.count == 1:
            await stream.stall()

    async def body(upstream: Upstream) -> None:
        async with connected(upstream, stall_timeout=0.3, retries=0) as backend:
            upstream.on_event = stall
            with pytest.raises(BackendFailed, match="brings nothing"):
                await complete(backend, asked())

    with_upstream(body)


def test_deadlines_and_closing_end_a_stalled_stream(with_upstream: Run) -> None:
    async def stall(stream: Stream) -> None:
        if stream.count == 1:
            await stream.stall()

    async def at_rest(upstream: Upstream) -> bool:
        return upstream.running == 0

    async def body(upstream: Upstream) -> None:
        async with connected(upstream) as backend:
            upstream.on_event = stall
            request = msgspec.structs.replace(asked(), timeout=0.3)
            with pytest.raises(DeadlineExceeded):
                await complete(backend, request)
            await eventually(lambda: at_rest(upstream), what="the server was told")
            events = await begin(backend, asked())
            waiting: asyncio.Future[Any] = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            await backend.aclose()
            with pytest.raises(BackendClosed):
                await waiting
            await eventually(lambda: at_rest(upstream), what="the server was told")

    with_upstream(body)


def test_cancelling_reaches_the_server(with_upstream: Run) -> None:
    async def at_rest(upstream: Upstream) -> bool:
        return upstream.running == 0

    async def body(upstream: Upstream) -> None:
        upstream.pause = 0.001
        async with connected(upstream) as backend:
            events = await begin(backend, asked(max_tokens=2000))
            assert upstream.running == 1
            await events.aclose()
            await eventually(lambda: at_rest(upstream), what="the server was told")
            assert (await backend.stats()).cancelled == 1

    with_upstream(body)


def test_the_breaker_leaves_a_failing_server_alone(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        settings = {"retries": 0, "breaker_failures": 3, "breaker_pause": 0.5}
        async with connected(upstream, **settings) as backend:
            upstream.status = [500] * 4
            for _ in range(3):
                with pytest.raises(BackendFailed, match="500"):
                    await complete(backend, asked())
            with pytest.raises(BackendFailed, match="left alone"):
                await complete(backend, asked())
            assert len(upstream.bodies) == 3

            async def tried() -> bool:
                with pytest.raises(BackendFailed) as caught:
                    await complete(backend, asked())
                return "500" in str(caught.value)

            await eventually(tried, what="one request tries it again")
            assert len(upstream.bodies) == 4
            with pytest.raises(BackendFailed, match="left alone"):
                await complete(backend, asked())

            async def well() -> bool:
                try:
                    await complete(backend, asked())
                except BackendFailed:
                    return False
                return True

            await eventually(well, what="it is well again")

    with_upstream(body)


def test_another_endpoint_takes_over(with_upstream: Run) -> None:
    async def body(first: Upstream) -> None:
        second = Upstream()
        await second.start()
        try:
            async with connected(first, second, retries=1) as backend:
                await first.stop()
                for _ in range(6):
                    await complete(backend, asked())
                assert len(second.bodies) == 6
        finally:
            await second.stop()

    with_upstream(body)


def test_the_least_busy_endpoint_is_taken_and_prefixes_stay(with_upstream: Run) -> None:
    async def body(first: Upstream) -> None:
        second = Upstream()
        await second.start()
        try:
            first.pause = second.pause = 0.002
            async with connected(first, second, metrics_interval=0.05) as backend:
                running = [await begin(backend, asked((i,), max_tokens=900)) for i in range(10)]
                assert (first.running, second.running) == (5, 5)
                for events in running:
                    await events.aclose()
                # Prompts that begin alike go where the first of them went.
                long = tuple(range(300))
                for i in range(4):
                    await complete(backend, asked((*long, i)))
                assert 4 in (_with(first, 300), _with(second, 300))
                # What others do there counts as well.
                busy, idle = (first, second) if _with(first, 300) else (second, first)
                busy.others = 50

                async def moved() -> bool:
                    await complete(backend, asked((*long, 9)))
                    return _with(idle, 300) > 0

                await eventually(moved, what="the load of others is seen")
        finally:
            await second.stop()

    with_upstream(body)


def _with(upstream: Upstream, length: int) -> int:
    return sum(len(body["prompt"]) > length for body in upstream.bodies)


def test_endpoints_of_different_models_are_refused(with_upstream: Run) -> None:
    async def body(first: Upstream) -> None:
        second = Upstream()
        second.context = 1024
        await second.start()
        try:
            with pytest.raises(ModelLoadFailed, match="different models"):
                async with connected(first, second):
                    pass
        finally:
            await second.stop()

    with_upstream(body)
