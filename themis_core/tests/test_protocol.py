"""The worker protocol: what goes in comes out, and nobody is hurt by what should not have come."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    ConfigInvalid,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
    ThemisError,
    all_error_types,
)
from themis_core.messages import (
    BackendStats,
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Histogram,
    ModelInfo,
    SamplingParams,
    Started,
    Usage,
)
from themis_core.protocol import (
    MAX_FRAME,
    MAX_MESSAGE,
    ClientOptions,
    FrameReader,
    Kind,
    Matrix,
    Message,
    ProtocolError,
    ServerOptions,
    announce,
    codec,
    encode_frame,
    pieces,
    serve_backend,
)
from themis_core.protocol.failures import Failure, RemoteCause, to_error, to_failure
from themis_testkit import Hold, ScriptedBackend
from themis_testkit.fakes.scripted import say
from themis_testkit.strategies import chat_messages, events, generate_requests, texts

from .protocol_pair import HELLO, Served, frame, pair, parse


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A test on an event loop, which must not hang and leave no task."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(limited())


def arrived(message: Message) -> Message:
    """The message as it comes out of the framing."""
    (found,) = parse(FrameReader(), encode_frame(message))
    return found


# --- every message -------------------------------------------------------------------------------


@given(generate_requests(vocab_size=2**32), st.integers(1, 100))
def test_generate_round_trip(request: GenerateRequest, credit: int) -> None:
    payload, buffer = codec.encode_generate(request, credit)
    call = codec.decode_generate(arrived(Message(Kind.GENERATE, 1, payload, buffer)))
    assert (call.request, call.credit) == (request, credit)
    assert (buffer is not None) == isinstance(request.prompt, tuple)


@given(st.lists(st.tuples(st.integers(1, 2**64 - 1), events()), max_size=8))
def test_events_round_trip(batch: list[tuple[int, GenerateEvent]]) -> None:
    message = arrived(Message(Kind.EVENTS, 0, codec.encode(batch)))
    assert codec.decode_events(message) == batch


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=30).map(tuple))
def test_token_ids_round_trip(ids: tuple[int, ...]) -> None:
    payload, buffer = codec.encode_ids(ids)
    assert codec.decode_ids(arrived(Message(Kind.REPLY, 1, payload, buffer))) == ids


floats = st.floats(allow_nan=False)
vectors = st.integers(0, 5).flatmap(
    lambda width: st.lists(st.lists(floats, min_size=width, max_size=width), max_size=5)
)


@given(vectors | st.lists(st.lists(floats, max_size=3), max_size=3))
def test_embeddings_round_trip(rows: list[list[float]]) -> None:
    response = EmbedResponse(embeddings=tuple(map(tuple, rows)), usage=Usage(prompt_tokens=3))
    payload, buffer, _ = codec.encode_embeddings(response)
    found = codec.decode_embeddings(arrived(Message(Kind.REPLY, 1, payload, buffer)))
    assert list(found.embeddings) == [tuple(row) for row in rows]
    assert found.usage == response.usage


def test_a_matrix_travels_as_it_is() -> None:
    matrix = Matrix.empty(3, 2)
    matrix.memory.cast("f")[:] = memoryview(bytes(24)).cast("f")
    matrix.memory.cast("f")[5] = 0.1
    response = EmbedResponse(embeddings=matrix, usage=Usage())  # type: ignore[arg-type]
    payload, buffer, _ = codec.encode_embeddings(response)
    found: object = codec.decode_embeddings(Message(Kind.REPLY, 1, payload, buffer)).embeddings
    assert isinstance(found, Matrix)
    assert found == matrix
    assert found.item == "f"


requests = st.builds(
    EmbedRequest, inputs=st.lists(texts(min_size=1) | st.just((1, 2)), min_size=1).map(tuple)
)
histograms = st.builds(Histogram, bounds=st.just((1.0,)), counts=st.just((2, 3)), total=floats)
small = st.integers(0, 2**53)


@given(
    st.one_of(
        requests,
        st.builds(BackendStats, requests=small, kv_used=small, ttft=histograms),
        st.builds(codec.LoadAdapter, name=texts(), path=texts(), description=texts()),
        st.builds(codec.Hello, magic=texts(), major=small, minor=small),
    )
)
def test_structs_round_trip(value: msgspec.Struct) -> None:
    message = arrived(Message(Kind.REPLY, 1, codec.encode(value)))
    assert codec.decode(message, type(value)) == value


@given(texts() | st.lists(chat_messages(), min_size=1).map(tuple))
def test_prompts_round_trip(prompt: Any) -> None:
    message = arrived(Message(Kind.TOKENIZE, 1, codec.encode(prompt)))
    assert codec.decode(message, codec.Prompt) == prompt


@pytest.mark.parametrize("cls", all_error_types())
def test_errors_travel_whole(cls: type[ThemisError]) -> None:
    error = cls("It broke \udcff.", field="sampling.n", remedy="Mend it.", plugin="echo")
    error.__cause__ = ValueError("inner")
    error.__cause__.__cause__ = OSError("innermost")
    message = Message(Kind.FAILED, 1, codec.encode(to_failure(error)))
    found = to_error(codec.decode(arrived(message), Failure))
    assert type(found) is cls
    assert (found.code, found.retryable) == (error.code, error.retryable)
    assert (found.field, found.remedy, found.plugin) == ("sampling.n", "Mend it.", "echo")
    assert found.message == "It broke \\udcff."
    assert isinstance(found.__cause__, RemoteCause)
    assert "inner" in str(found.__cause__)
    assert "innermost" in str(found.__cause__)


def test_an_error_that_this_end_does_not_know_is_its_nearest_base() -> None:
    failure = Failure(
        kind="GpuLost",
        codes=("gpu_lost", "backend_failed", "internal"),
        message="Gone.",
        retryable=False,
    )
    error = to_error(failure)
    assert type(error) is BackendFailed
    assert (error.code, error.retryable) == ("gpu_lost", False)
    assert to_failure(error).codes[0] == "gpu_lost"


def test_configuration_problems_travel_as_text() -> None:
    error = to_error(to_failure(ConfigInvalid("Wrong:", problems=("a: b", 3))))
    assert str(error) == "Wrong:\n  a: b\n  3"


def test_a_foreign_exception_becomes_an_internal_error() -> None:
    error = to_error(to_failure(ZeroDivisionError("1/0")))
    assert type(error) is InternalError
    assert "ZeroDivisionError" in error.message


def _view(data: bytes) -> memoryview:
    return memoryview(data)


# --- framing -------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.lists(
        st.builds(
            Message,
            st.sampled_from([Kind.REPLY, Kind.EVENTS]),
            st.integers(0, 2**64 - 1),
            st.binary(max_size=100) | st.integers(60_000, 3_000_000).map(bytes),
            st.none() | st.binary(min_size=1, max_size=50).map(_view),
        ),
        max_size=4,
    ),
    st.randoms(use_true_random=False),
)
def test_frames_survive_any_cut(messages: list[Message], random: Any) -> None:
    data = b""
    for number, message in enumerate(messages):
        if len(message.payload) + 50 <= MAX_FRAME:
            data += encode_frame(message)
        else:
            data += encode_frame(announce(message, number))
            data += b"".join(encode_frame(piece) for piece in pieces(message, number))
    reader, found, start = FrameReader(), [], 0
    while start < len(data):
        stop = start + random.choice([1, 7, 20, 1000, 100_000])
        found += parse(reader, data[start:stop])
        start = stop
    assert [(m.kind, m.id, bytes(m.payload)) for m in found] == [
        (m.kind, m.id, bytes(m.payload)) for m in messages
    ]
    assert [m.buffer and bytes(m.buffer) for m in found] == [
        m.buffer and bytes(m.buffer) for m in messages
    ]


def test_pieces_of_several_messages_may_alternate() -> None:
    first, second = (Message(Kind.REPLY, n, bytes([n]) * (2 * MAX_FRAME + n)) for n in (1, 2))
    frames = [announce(first, 1), announce(second, 2)]
    for one, other in zip(pieces(first, 1), pieces(second, 2), strict=True):
        frames += [one, Message(Kind.EVENTS, 0, b"between"), other]
    found = parse(FrameReader(), b"".join(map(encode_frame, frames)))
    assert [m.id for m in found if m.id] == [1, 2]
    whole = {m.id: bytes(m.payload) for m in found if m.id}
    assert whole == {1: bytes(first.payload), 2: bytes(second.payload)}


def bulk(kind: int, payload: int, buffer: int = 0) -> bytes:
    return msgspec.msgpack.encode([kind, 1, payload, buffer])


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 20,  # A length bomb.
        frame(Kind.REPLY)[:9] + b"\x01" + frame(Kind.REPLY)[10:],  # A reserved bit.
        frame(Kind.PIECE, 1, b"x"),  # Never announced.
        frame(Kind.BULK, 1, bulk(Kind.REPLY, MAX_MESSAGE + 1)),
        frame(Kind.BULK, 1, bulk(Kind.REPLY, -1)),
        frame(Kind.BULK, 1, bulk(Kind.REPLY, 2**64 - 1)),
        frame(Kind.BULK, 1, bulk(Kind.REPLY, 0)),
        frame(Kind.BULK, 1, bulk(Kind.PIECE, 10)),
        frame(Kind.BULK, 1, bulk(200, 10)),
        frame(Kind.BULK, 1, b"\xc1"),
        frame(Kind.BULK, 1, bulk(Kind.REPLY, 10)) * 2,  # The same number twice.
        frame(Kind.BULK, 1, bulk(Kind.REPLY, 2)) + frame(Kind.PIECE, 1, b"xyz"),
        frame(Kind.BULK, 1, bulk(Kind.REPLY, 2)) + frame(Kind.PIECE, 1, b""),
        frame(Kind.BULK, 1, bulk(Kind.REPLY, 2)) + frame(Kind.PIECE, 1, b"x", b"y"),
        b"".join(frame(Kind.BULK, n, bulk(Kind.REPLY, MAX_MESSAGE)) for n in range(3)),
        b"".join(frame(Kind.BULK, n, bulk(Kind.REPLY, 9)) for n in range(300)),
    ],
)
def test_hostile_frames_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(FrameReader(), data)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_random_bytes_give_messages_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse(FrameReader(), data)


# --- a hostile peer ------------------------------------------------------------------------------

GENERATE = codec.encode(
    codec.Generate(GenerateRequest(prompt="x", sampling=SamplingParams(max_tokens=1)), 4)
)


def holding() -> tuple[ScriptedBackend, Hold]:
    hold = Hold()
    return ScriptedBackend([Started(prompt_tokens=1), hold, *say("a")[1:]]), hold


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(20), "reserved bits"),
        (frame(Kind.STATS, 1, b"\xc0"), "began with a message of kind 17"),
        (frame(Kind.HELLO, 0, codec.encode(codec.Hello("other", 1, 0))), "began with 'other'"),
        (frame(Kind.HELLO, 0, codec.encode(codec.Hello("themis", 7, 0))), "7.0 is not supported"),
        (frame(Kind.HELLO, 0, b"\xc1"), "cannot be read"),
        (HELLO + HELLO, "kind 1"),
        (HELLO + frame(99, 1), "kind 99"),
        (HELLO + frame(Kind.EVENTS, 1), "kind 32"),
        (HELLO + frame(Kind.GENERATE, 1, b"\x90"), "cannot be read"),
        (HELLO + frame(Kind.GENERATE, 1, GENERATE) * 2, "in use"),
        (HELLO + frame(Kind.STATS, 5, b"\xc0") * 2, "in use"),
        (HELLO + frame(Kind.CREDIT, 1, b"\x00"), "credit of 0"),
        (HELLO + frame(Kind.CREDIT, 1, codec.encode(2**40)), "credit of"),
        (HELLO + frame(Kind.CREDIT, 1, b"\xa1x"), "cannot be read"),
        (HELLO + frame(Kind.EMBED, 1, b"\xc0"), "cannot be read"),
        (HELLO + frame(Kind.DETOKENIZE, 1, codec.encode(codec.TokenIds()), b"xyz"), "3 bytes"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else ""
    ),  # The bytes are other ones each time.
)
def test_a_hostile_client_loses_its_connection_and_nobody_else_anything(
    data: bytes, why: str
) -> None:
    async def main() -> None:
        backend, hold = holding()
        async with Served(backend) as served:
            reading = asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
            await hold.reached()
            _, end = pair()
            session = serve_backend(end, backend)
            end.feed(data)
            await session.wait_ended()
            assert end.sent[-1].kind == Kind.GOAWAY
            failure: Failure = codec.decode(end.sent[-1], Failure)
            assert why in failure.message
            hold.release()
            assert isinstance((await reading)[-1], Done)

    run(main)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*map(int, Kind), 99, 130, 255]),
            st.integers(0, 3),
            st.binary(max_size=40) | st.just(GENERATE) | st.just(b"\xc0") | st.just(b"\x05"),
            st.none() | st.binary(max_size=12),
        ),
        max_size=8,
    )
)
def test_whatever_a_client_sends_the_session_ends_clean(
    script: list[tuple[int, int, bytes, bytes | None]],
) -> None:
    async def main() -> None:
        backend = ScriptedBackend(say("a", "b"))
        await backend.start()
        _, end = pair()
        session = serve_backend(end, backend)
        end.feed(HELLO)
        for kind, number, payload, buffer in script:
            end.feed(frame(kind, number, payload, buffer))
            await asyncio.sleep(0)
        end.abort("the test is over")
        await session.wait_ended()
        stats = await backend.stats()
        assert stats.running == 0
        await backend.aclose()

    run(main)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*map(int, Kind), 99, 255]),
            st.integers(0, 3),
            st.binary(max_size=40) | st.just(b"\xc0") | st.just(b"\x90"),
            st.none() | st.binary(max_size=12),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_a_server_sends_the_client_gets_an_answer_or_an_error(
    script: list[tuple[int, int, bytes, bytes | None]],
) -> None:
    async def main() -> None:
        async with Served(ScriptedBackend([Started(prompt_tokens=1), Hold()])) as served:
            reading = asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
            asking = asyncio.create_task(served.remote.tokenize("x"))
            await asyncio.sleep(0)
            for kind, number, payload, buffer in script:
                served.client_end.feed(frame(kind, number, payload, buffer))
                await asyncio.sleep(0)
            served.client_end.abort("the test is over")
            for found in await asyncio.gather(reading, asking, return_exceptions=True):
                assert isinstance(found, ThemisError | list | tuple), found

    run(main)


# --- behaviour -----------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until something has happened; `run` limits how long."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event.
        await asyncio.sleep(0)


async def collect(backend: Any, request: GenerateRequest) -> list[GenerateEvent]:
    async with aclosing(backend.generate(request)) as found:
        return [event async for event in found]


class Counting(ScriptedBackend):
    """Gives deltas as fast as they are taken, and counts them by tenant."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.given: dict[str | None, int] = {}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        yield Started(prompt_tokens=1)
        for token in range(self.count):
            self.given[request.tenant] = token + 1
            yield Delta(text="x", token_ids=(token,))
        yield Finished(reason="length")
        yield Done(usage=Usage(completion_tokens=self.count))


def test_a_slow_reader_slows_its_own_stream_only() -> None:
    async def main() -> None:
        backend = Counting(1000)
        async with Served(backend, client=ClientOptions(window=16)) as served:
            slow = served.remote.generate(GenerateRequest(prompt="x", tenant="slow"))
            await anext(slow)
            quick = await collect(served.remote, GenerateRequest(prompt="x", tenant="quick"))
            assert len(quick) == 1003
            assert backend.given["slow"] <= 17
            rest = [event async for event in slow]
            assert [e.token_ids[0] for e in rest if isinstance(e, Delta)] == list(range(1000))

    run(main)


def test_a_congested_client_is_not_written_to() -> None:
    async def main() -> None:
        backend = Counting(10_000)
        async with Served(backend) as served:
            served.server_end.congested = True
            reading = asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
            await until(lambda: backend.given)
            for _ in range(200):
                await asyncio.sleep(0)
            assert backend.given[None] <= 65
            assert not any(m.kind == Kind.EVENTS for m in served.server_end.sent)
            served.server_end.congested = False
            assert served.session is not None
            served.session.writable()
            assert len(await reading) == 10_003

    run(main)


def test_events_of_one_step_travel_together() -> None:
    async def main() -> None:
        hold = Hold()
        script = [Started(prompt_tokens=1), hold, *say("a", "b")[1:]]
        async with Served(ScriptedBackend(script)) as served:
            readers = [collect(served.remote, GenerateRequest(prompt="x")) for _ in range(20)]
            reading = asyncio.gather(*readers)
            await hold.reached()
            hold.release()
            await reading
            batches = [m for m in served.server_end.sent if m.kind == Kind.EVENTS]
            assert len(batches) <= 10  # And not a hundred.

    run(main)


def test_cancelling_reaches_the_backend() -> None:
    async def main() -> None:
        backend, hold = holding()
        async with Served(backend) as served:
            request = GenerateRequest(prompt="x")
            found = served.remote.generate(request)
            await anext(found)
            await hold.reached()
            await found.aclose()
            await until(lambda: backend.cancelled)
            assert backend.cancelled == [request.request_id]

    run(main)


def test_the_client_keeps_the_deadline_of_a_server_that_is_stuck() -> None:
    async def main() -> None:
        backend = ScriptedBackend([Started(prompt_tokens=1), Hold()])
        options = ClientOptions(deadline_grace=0.0, reconnect=False)
        async with Served(backend, client=options) as served:
            served.server_end.congested = True
            with pytest.raises(DeadlineExceeded) as caught:
                await collect(served.remote, GenerateRequest(prompt="x", timeout=0.05))
            assert caught.value.field == "timeout"

    run(main)


def test_a_silent_server_is_given_up() -> None:
    async def main() -> None:
        options = ClientOptions(ping_after=0.02, dead_after=0.06, reconnect=False)
        async with Served(ScriptedBackend([Hold()]), client=options) as served:
            served.server_end._write = lambda data: None  # type: ignore[method-assign]
            with pytest.raises(BackendFailed, match="silent"):
                await collect(served.remote, GenerateRequest(prompt="x"))

    run(main)


def test_pings_keep_a_quiet_connection() -> None:
    async def main() -> None:
        hold = Hold()
        options = ClientOptions(ping_after=0.01, dead_after=2, reconnect=False)
        backend = ScriptedBackend([Started(prompt_tokens=1), hold, *say("a")[1:]])
        async with Served(backend, client=options) as served:
            reading = asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
            sent = served.server_end.sent
            clock = asyncio.get_running_loop().time
            enough = clock() + 1.5 * options.dead_after
            await until(lambda: clock() > enough)
            assert [m.kind for m in sent].count(Kind.PONG) >= 2
            hold.release()
            assert isinstance((await reading)[-1], Done)

    run(main)


def test_draining_finishes_what_runs_and_refuses_the_rest() -> None:
    async def main() -> None:
        backend, hold = holding()
        async with Served(backend) as served:
            reading = asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
            await hold.reached()
            draining = asyncio.create_task(served.remote.drain())
            await until(lambda: served.session and served.session._draining)
            with pytest.raises(BackendClosed, match="draining"):
                await collect(served.remote, GenerateRequest(prompt="y"))
            assert not draining.done()
            hold.release()
            assert isinstance((await reading)[-1], Done)
            await draining

    run(main)


def test_a_server_that_goes_away_lets_what_runs_finish() -> None:
    async def main() -> None:
        backend, hold = holding()
        async with Served(backend) as served:
            reading = asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
            await hold.reached()
            assert served.session is not None
            served.session.go_away(BackendClosed("Moving."))
            await until(lambda: not served.remote.connected)
            with pytest.raises(BackendClosed, match="Moving"):
                await collect(served.remote, GenerateRequest(prompt="y"))
            hold.release()
            assert isinstance((await reading)[-1], Done)

    run(main)


def test_too_many_requests_of_one_client_are_refused() -> None:
    async def main() -> None:
        backend, hold = holding()
        async with Served(backend, server=ServerOptions(max_in_flight=2)) as served:
            readers = [
                asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
                for _ in range(2)
            ]
            await hold.reached()
            with pytest.raises(Overloaded):
                await collect(served.remote, GenerateRequest(prompt="y"))
            hold.release()
            await asyncio.gather(*readers)

    run(main)


def test_a_client_that_says_nothing_is_disconnected() -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        await backend.start()
        _, end = pair()
        await serve_backend(end, backend, ServerOptions(hello_timeout=0.02)).wait_ended()
        assert "nothing" in end.reason
        await backend.aclose()

    run(main)


def test_an_unknown_version_is_a_failed_start_with_the_reason() -> None:
    async def main() -> None:
        served = Served(ScriptedBackend())
        await served.backend.start()
        send = served.client_end.send

        def newer(message: Message) -> None:
            send(Message(message.kind, 0, codec.encode(codec.Hello("themis", 9, 3))))

        served.client_end.send = newer  # type: ignore[method-assign]
        with pytest.raises(ModelLoadFailed, match=r"9\.3 is not supported"):
            await served.remote.start()
        assert served.session is not None
        await served.session.wait_ended()
        await served.backend.aclose()

    run(main)


class Failing(ScriptedBackend):
    error: ClassVar[BaseException] = ZeroDivisionError("1/0")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        yield Started(prompt_tokens=1)
        raise self.error

    async def stats(self) -> BackendStats:
        raise self.error


def test_what_a_broken_backend_raises_reaches_the_caller() -> None:
    async def main() -> None:
        async with Served(Failing()) as served:
            with pytest.raises(InternalError, match="ZeroDivisionError"):
                await collect(served.remote, GenerateRequest(prompt="x"))
            with pytest.raises(InternalError, match="ZeroDivisionError"):
                await served.remote.stats()

    run(main)


def test_a_backend_that_failed_for_good_disconnects_its_clients() -> None:
    class Mortal(ScriptedBackend):
        broken = False

        @property
        def info(self) -> ModelInfo:
            if self.broken:
                raise BackendFailed("The engine has ended.")
            return super().info

    async def main() -> None:
        hold = Hold()
        failing = Mortal([Started(prompt_tokens=1), hold, BackendFailed("Broken.")])
        async with Served(failing) as served:
            reading = asyncio.create_task(collect(served.remote, GenerateRequest(prompt="x")))
            await hold.reached()
            failing.broken = True
            hold.release()
            with pytest.raises(BackendFailed, match="Broken"):
                await reading
            await until(lambda: not served.remote.connected)
            with pytest.raises(BackendFailed, match="engine has ended"):
                await collect(served.remote, GenerateRequest(prompt="x"))

    run(main)


def test_an_error_comes_after_the_events_before_it() -> None:
    async def main() -> None:
        failure = BackendFailed("Broken.", plugin="scripted")
        script: list[Any] = [Started(prompt_tokens=1), Delta(text="a", token_ids=(1,)), failure]
        async with Served(ScriptedBackend(script)) as served:
            found = served.remote.generate(GenerateRequest(prompt="x"))
            assert [await anext(found), await anext(found)] == script[:2]
            with pytest.raises(BackendFailed) as caught:
                await anext(found)
            assert caught.value.plugin == "scripted"

    run(main)


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt="a\ud800b"),
        GenerateRequest(prompt=(2**64,)),
        GenerateRequest(prompt="x", sampling=SamplingParams(logit_bias={2**70: 1.0})),
    ],
)
def test_what_msgpack_cannot_express_is_an_invalid_request(request_: GenerateRequest) -> None:
    async def main() -> None:
        async with Served(ScriptedBackend(say("a"))) as served:
            with pytest.raises(InvalidRequest):
                await collect(served.remote, request_)
            assert served.remote.connected
            assert await collect(served.remote, GenerateRequest(prompt="x"))

    run(main)


def test_a_request_that_means_nothing_is_refused_as_at_home() -> None:
    async def main() -> None:
        backend = ScriptedBackend(say("a"))
        await backend.start()
        _, end = pair()
        session = serve_backend(end, backend)
        wrong = msgspec.msgpack.decode(GENERATE)
        wrong[0]["sampling"]["top_p"] = 7.0
        end.feed(HELLO + frame(Kind.GENERATE, 1, msgspec.msgpack.encode(wrong)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (number, failure), *_ = codec.decode_events(end.sent[-1])
        assert number == 1
        assert isinstance(failure, Failure)
        assert failure.field == "sampling.top_p"
        end.abort("over")
        await session.wait_ended()
        await backend.aclose()

    run(main)


def test_losing_the_connection_fails_what_is_in_flight() -> None:
    async def main() -> None:
        async with Served(ScriptedBackend([Started(prompt_tokens=1), Hold()])) as served:
            found = served.remote.generate(GenerateRequest(prompt="x"))
            await anext(found)
            served.server_end.abort("a crash")
            with pytest.raises(BackendFailed, match="was lost"):
                await anext(found)
            with pytest.raises(BackendFailed):
                await served.remote.stats()
            assert not served.remote.connected

    run(main)


def test_each_caller_raises_an_error_of_its_own() -> None:
    async def main() -> None:
        async with Served(ScriptedBackend([Started(prompt_tokens=1), Hold()])) as served:
            streams = [served.remote.generate(GenerateRequest(prompt="x")) for _ in range(2)]
            for stream in streams:
                await anext(stream)
            served.server_end.abort("a crash")
            found = await asyncio.gather(*map(anext, streams), return_exceptions=True)
            assert found[0] is not found[1]
            assert copy.copy(found[0]) is not found[0]

    run(main)
