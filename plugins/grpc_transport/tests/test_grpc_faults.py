"""What can go wrong between two hosts: death, garbage, deadlines, too much of something."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from themis_core.contracts import Backend
from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    ConfigInvalid,
    DeadlineExceeded,
    ModelLoadFailed,
    Overloaded,
    RequestTooLarge,
    ThemisError,
)
from themis_core.messages import (
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    Usage,
)
from themis_core.protocol import ClientOptions, Matrix, ServerOptions
from themis_core.protocol.failures import RemoteCause
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_grpc_transport import channels
from themis_grpc_transport.statuses import DETAILS
from themis_grpc_transport.transport import GrpcTransport
from themis_grpc_transport.v1 import themis_pb2 as pb
from themis_grpc_transport.v1 import themis_pb2_grpc as services
from themis_testkit import Hold, ScriptedBackend
from themis_testkit.conformance import eventually
from themis_testkit.fakes.scripted import say

MIB = 1 << 20
LONG = GenerateRequest(prompt="to be or not to be " * 1000)
_loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def event_loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on both kinds of event loop."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        monkeypatch.setattr(sys.modules[__name__], "_loop_factory", uvloop.new_event_loop)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A test on an event loop, which must not hang and leave no task."""

    async def limited() -> None:
        async with asyncio.timeout(60):
            await main()
        left: Any = asyncio.all_tasks() - {asyncio.current_task()}
        if left:  # gRPC ends one of its own a moment after its call.
            left = (await asyncio.wait(left, timeout=10))[1]
        assert not left, left

    with asyncio.Runner(loop_factory=_loop_factory) as runner:
        runner.run(limited())


class Pair:
    """A server and one client on one loop."""

    def __init__(self, backend: Any, query: str = "", options: ServerOptions | None = None) -> None:
        self.backend = backend
        self.transport = GrpcTransport("grpc", server=options)
        self._query = query

    async def __aenter__(self) -> Pair:
        await self.backend.start()
        url = f"grpc://127.0.0.1:0{self._query if 'max_' in self._query else ''}"
        self.server: Any = await self.transport.serve(self.backend, url)
        self.remote: Any = self.transport.connect(self.server.url + self._query)
        await self.remote.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remote.aclose()
        await self.server.aclose()
        await self.backend.aclose()

    @property
    def target(self) -> str:
        return str(self.server.url).removeprefix("grpc://")


@asynccontextmanager
async def other_language(target: str) -> AsyncIterator[Any]:
    """Plain grpcio, as a client of another language has it."""
    async with grpc.aio.insecure_channel(target) as channel:
        yield services.InferenceStub(channel)


async def collect(backend: Backend, request: GenerateRequest) -> list[GenerateEvent]:
    async with aclosing(backend.generate(request)) as found:
        return [event async for event in found]


def request(**keys: Any) -> GenerateRequest:
    return GenerateRequest(prompt="x", sampling=SamplingParams(max_tokens=4), **keys)


def held(hold: Hold) -> list[GenerateEvent | Hold | ThemisError]:
    """A script that stalls after the first token."""
    events = say("a", "b")
    return [*events[:2], hold, *events[2:]]


class Vectors(ScriptedBackend):
    """Embeds a text of so many rows."""

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        rows = int(str(request.inputs[0]))
        matrix: Any = Matrix(memoryview(bytes(range(256)) * (rows * 16)), 1024)
        return EmbedResponse(embeddings=matrix, usage=Usage())


class Failing(ScriptedBackend):
    """Fails with an error that has everything, and a cause."""

    async def tokenize(self, prompt: Any) -> tuple[int, ...]:
        error = Overloaded("full", field="f", remedy="wait", plugin="p")
        raise error from OSError("the cause")


# --- errors --------------------------------------------------------------------------------------


def test_errors_come_whole(query: str) -> None:
    async def main() -> None:
        async with Pair(Failing(), query) as pair:
            with pytest.raises(Overloaded) as caught:
                await pair.remote.tokenize("x")
            error = caught.value
            assert (error.message, error.field, error.remedy) == ("full", "f", "wait")
            assert error.plugin == "p"
            assert error.retryable
            assert isinstance(error.__cause__, RemoteCause)
            assert "the cause" in str(error.__cause__)

    run(main)


def test_another_language_sees_status_and_details() -> None:
    async def main() -> None:
        async with Pair(Failing()) as pair, other_language(pair.target) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Tokenize(pb.TokenizeRequest(text="x"))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.details() == "full"
            status = pb.Status.FromString(dict(iter(caught.value.trailing_metadata()))[DETAILS])
            found = pb.Error()
            assert status.details[0].Unpack(found)
            assert found.codes[0] == "overloaded"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GenerateOnce(pb.GenerateRequest())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(main)


def test_long_errors_are_cut_for_the_headers() -> None:
    class Verbose(ScriptedBackend):
        async def tokenize(self, prompt: Any) -> tuple[int, ...]:
            raise BackendFailed("é" * 100_000) from OSError("y" * 100_000)

    async def main() -> None:
        async with Pair(Verbose(), "?per_request=1") as pair:
            with pytest.raises(BackendFailed, match=r"^é+…$"):
                await pair.remote.tokenize("x")

    run(main)


# --- another language ----------------------------------------------------------------------------


def test_another_language_generates() -> None:
    async def main() -> None:
        backend = EchoBackend(EchoSettings())
        async with Pair(backend) as pair, other_language(pair.target) as stub:
            text = pb.GenerateRequest(text="to be or not")
            answer = await stub.GenerateOnce(text)
            assert answer.choices[0].text == "to be or not"
            assert answer.choices[0].finish_reason == pb.FINISH_REASON_STOP
            ids = (await stub.Tokenize(pb.TokenizeRequest(text="to be"))).token_ids
            asked = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
            found = [event async for part in stub.Generate(asked) for event in part.events]
            assert found[0].WhichOneof("event") == "started"
            assert "".join(event.delta.text for event in found) == "to be"
            given = [i for event in found for i in event.delta.token_ids]
            assert (await stub.Detokenize(pb.DetokenizeRequest(token_ids=given))).text == "to be"
            assert found[-1].done.usage.prompt_tokens == len(ids)
            assert (await stub.GetInfo(pb.GetInfoRequest())).backend == "echo"
            assert (await stub.GetStats(pb.GetStatsRequest())).finished == 2

    run(main)


def test_health_and_reflection() -> None:
    async def main() -> None:
        async with (
            Pair(EchoBackend(EchoSettings())) as pair,
            grpc.aio.insecure_channel(pair.target) as channel,
        ):
            health: Any = health_pb2_grpc.HealthStub(channel)
            for name in ("", "themis.v1.Inference", "themis.v1.Worker"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            plain: Any = channel  # The stubs know no asynchronous one here.
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(plain)
            call = stub.ServerReflectionInfo()
            await call.write(ask)
            listed = await call.read()
            call.cancel()
            names = {service.name for service in listed.list_services_response.service}
            assert {"themis.v1.Inference", "grpc.health.v1.Health"} <= names
            await pair.server.drain()
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

    run(main)


# --- limits --------------------------------------------------------------------------------------


def test_a_matrix_larger_than_a_message_passes_in_pieces() -> None:
    async def main() -> None:
        async with Pair(Vectors(), "?max_message_mib=2") as pair:
            found: Any = (await pair.remote.embed(EmbedRequest(inputs=("4096",)))).embeddings
            assert found.memory.nbytes == 16 * MIB
            assert bytes(found.memory[-256:]) == bytes(range(256))

    run(main)


def test_an_answer_above_the_limit_is_refused() -> None:
    async def main() -> None:
        async with Pair(Vectors(), "?per_request=1&max_message_mib=1") as pair:
            with pytest.raises(RequestTooLarge, match="max_message_mib"):
                await pair.remote.embed(EmbedRequest(inputs=("4096",)))
            assert len((await pair.remote.embed(EmbedRequest(inputs=("16",)))).embeddings) == 16

    run(main)


def test_a_request_above_the_limit_is_refused(query: str) -> None:
    """One call of `Inference`; the worker protocol takes it in pieces, and the model says no."""

    async def main() -> None:
        limited = f"{query or '?per_request=0'}&max_message_mib=1"
        async with Pair(EchoBackend(EchoSettings()), limited) as pair:
            with pytest.raises(ThemisError) as caught:
                await collect(pair.remote, GenerateRequest(prompt="x" * (2 * MIB)))
            code = "request_too_large" if "per_request=1" in query else "prompt_too_long"
            assert caught.value.code == code
            assert isinstance((await collect(pair.remote, request()))[-1], Done)

    run(main)


def test_requests_in_flight_are_limited(query: str) -> None:
    async def main() -> None:
        hold = Hold()
        backend = ScriptedBackend(held(hold))
        async with Pair(backend, query, ServerOptions(max_in_flight=1)) as pair:
            first = asyncio.create_task(collect(pair.remote, request()))
            await hold.reached()
            with pytest.raises(Overloaded):
                await collect(pair.remote, request())
            hold.release()
            assert isinstance((await first)[-1], Done)

    run(main)


def test_requests_in_flight_are_limited_by_the_url(query: str) -> None:
    """Those above the limit are told, and at once: they do not queue for an HTTP/2 stream."""

    async def main() -> None:
        hold = Hold()
        backend = ScriptedBackend(held(hold))
        async with Pair(backend, f"{query or '?per_request=0'}&max_streams=2") as pair:
            running = [asyncio.create_task(collect(pair.remote, request())) for _ in range(2)]
            await at_work(backend, 2)
            above = await asyncio.gather(
                *(collect(pair.remote, request()) for _ in range(200)), return_exceptions=True
            )
            assert {type(error) for error in above} == {Overloaded}
            hold.release()
            for task in running:
                assert isinstance((await task)[-1], Done)
            assert isinstance((await collect(pair.remote, request()))[-1], Done)

    run(main)


# --- time ----------------------------------------------------------------------------------------


def test_a_deadline_ends_the_request_at_both_ends(query: str) -> None:
    async def main() -> None:
        backend = ScriptedBackend(held(Hold()))
        async with Pair(backend, query) as pair:
            with pytest.raises(DeadlineExceeded):
                await collect(pair.remote, request(timeout=0.05))
            await at_rest(backend)

    run(main)


def test_a_deadline_of_the_call_reaches_the_backend() -> None:
    async def main() -> None:
        backend = ScriptedBackend(held(Hold()))
        async with Pair(backend) as pair, other_language(pair.target) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GenerateOnce(pb.GenerateRequest(text="x"), timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await at_rest(backend)

    run(main)


async def exhaust(events: AsyncIterator[GenerateEvent]) -> None:
    async for _ in events:
        pass


async def at_rest(backend: Any) -> None:
    await at_work(backend, 0)


async def at_work(backend: Any, count: int) -> None:
    async def so_many() -> bool:
        return bool((await backend.stats()).running == count)

    await eventually(so_many, what=f"the backend runs {count} requests")


# --- those who vanish ----------------------------------------------------------------------------


def test_a_client_that_goes_cancels_its_requests(query: str) -> None:
    async def main() -> None:
        backend = EchoBackend(EchoSettings(delay=0.001, context=100_000))
        async with Pair(backend, query) as pair:
            events = pair.remote.generate(LONG)
            await anext(events)
            assert (await backend.stats()).running == 1
            await events.aclose()
            await at_rest(backend)
            events = pair.remote.generate(LONG)
            await anext(events)
            await pair.remote.aclose()
            with pytest.raises(BackendClosed):
                await exhaust(events)
            await at_rest(backend)

    run(main)


def test_a_killed_server_fails_what_is_in_flight_and_the_next_one_serves(query: str) -> None:
    async def main() -> None:
        process, url = await spawn("grpc://127.0.0.1:0")
        remote = GrpcTransport("grpc").connect(url + query)
        try:
            await remote.start()
            events = remote.generate(LONG)
            await anext(events)
            process.kill()
            with pytest.raises(BackendFailed, match=r"127\.0\.0\.1"):
                await exhaust(events)
            await asyncio.to_thread(process.wait)
            with pytest.raises(BackendFailed):
                await collect(remote, request())
            again, same = await spawn(url)
            try:
                assert same == url

                async def answered() -> bool:
                    try:
                        return isinstance((await collect(remote, request()))[-1], Done)
                    except BackendFailed:
                        return False

                await eventually(answered, what="the next server answers")
            finally:
                end(again)
        finally:
            await remote.aclose()
            end(process)

    run(main)


def test_a_killed_client_leaves_nothing_running() -> None:
    """A client that says nothing more, not even goodbye."""

    async def main() -> None:
        backend = EchoBackend(EchoSettings(delay=0.001, context=100_000))
        async with Pair(backend) as pair:
            code = (
                "import grpc, os, sys; from themis_grpc_transport.v1 import themis_pb2 as pb, "
                "themis_pb2_grpc as s; stub = s.InferenceStub(grpc.insecure_channel(sys.argv[1]));"
                "next(stub.Generate(pb.GenerateRequest(text='word ' * 10000))); os._exit(0)"
            )
            command = [sys.executable, "-c", code, pair.target]
            done = await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
            assert done.returncode == 0
            await at_rest(backend)
            stats = await backend.stats()
            assert stats.requests == stats.cancelled == 1

    run(main)


def test_a_server_that_falls_silent_is_given_up(
    query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host has lost the network, say: there is neither an answer nor an end."""

    async def main() -> None:
        monkeypatch.setattr(channels, "_KEEPALIVE", 500)
        process, url = await spawn("grpc://127.0.0.1:0")
        options = ClientOptions(ping_after=0.1, dead_after=1.0, connect_timeout=20.0)
        remote = GrpcTransport("grpc", client=options).connect(url + query)
        try:
            await remote.start()
            events = remote.generate(LONG)
            await anext(events)
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(BackendFailed, match=r"127\.0\.0\.1"):
                await exhaust(events)
        finally:
            await remote.aclose()
            end(process)

    run(main)


def test_a_client_that_falls_silent_is_given_up(
    query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asked for ends, though its connection does not."""

    async def main() -> None:
        monkeypatch.setattr(channels, "_KEEPALIVE", 500)
        backend = EchoBackend(EchoSettings(delay=0.001, context=100_000))
        async with Pair(backend) as pair:
            process, line = await spawn("client", pair.server.url + query)
            try:
                assert line == "asked"
                await at_work(backend, 1)
                process.send_signal(signal.SIGSTOP)
                await at_rest(backend)
                assert (await backend.stats()).cancelled == 1
                assert isinstance((await collect(pair.remote, request()))[-1], Done)
            finally:
                end(process)

    run(main)


def test_a_closed_server_ends_all_requests_and_leaves_nothing(query: str) -> None:
    """Neither tasks (as all tests here see), nor threads, nor descriptors."""

    async def once() -> None:
        backend = ScriptedBackend(held(Hold()))
        async with Pair(backend, query) as pair:
            tasks = [asyncio.create_task(collect(pair.remote, request())) for _ in range(8)]
            await at_work(backend, 8)
            await pair.server.aclose()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(error, BackendClosed | BackendFailed), error
            await at_rest(backend)

    async def main() -> None:
        await once()  # gRPC starts threads and opens descriptors that it keeps.
        await once()
        before = belongings()
        for _ in range(5):
            await once()

        async def as_before() -> bool:  # gRPC closes in the background.
            return all(now <= then for now, then in zip(belongings(), before, strict=True))

        await eventually(as_before, what=f"no more than {before} threads and descriptors")

    run(main)


def belongings() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_message_that_is_no_protobuf_ends_its_call_alone() -> None:
    async def main() -> None:
        async with (
            Pair(EchoBackend(EchoSettings())) as pair,
            grpc.aio.insecure_channel(pair.target) as channel,
        ):
            once: Any = channel.unary_unary("/themis.v1.Inference/GenerateOnce")
            with pytest.raises(grpc.aio.AioRpcError):
                await once(b"\xff\xff\xff")
            call: Any = channel.stream_stream("/themis.v1.Worker/Connect")()
            await call.write(b"\xff\xff\xff")
            last = b""
            while (answer := await call.read()) is not grpc.aio.EOF:
                last = answer
            assert b"no message of Protobuf" in last
            assert isinstance((await collect(pair.remote, request()))[-1], Done)

    run(main)


def test_garbage_on_the_port_harms_nobody() -> None:
    async def main() -> None:
        async with Pair(EchoBackend(EchoSettings())) as pair:
            host, port = pair.target.rsplit(":", 1)
            for noise in (b"\0" * 5000, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00" * 99):
                with socket.create_connection((host, int(port))) as rude:
                    rude.sendall(noise)
                assert isinstance((await collect(pair.remote, request()))[-1], Done)

    run(main)


def test_garbage_in_the_worker_protocol_ends_that_client_alone() -> None:
    async def main() -> None:
        async with (
            Pair(EchoBackend(EchoSettings())) as pair,
            grpc.aio.insecure_channel(pair.target) as channel,
        ):
            call = services.WorkerStub(channel).Connect()
            await call.write(pb.Frames(data=b"\xff" * 100))
            while await call.read() is not grpc.aio.EOF:
                pass
            assert isinstance((await collect(pair.remote, request()))[-1], Done)

    run(main)


def test_a_slow_reader_slows_only_its_own_stream(query: str) -> None:
    async def main() -> None:
        # Credit counts events; calls by themselves have the windows of HTTP/2, some megabytes.
        count, text = (500, "word " * 12_800) if query else (3000, "word " * 200)
        script = say(*[text] * count)
        backend = ScriptedBackend(script)
        async with Pair(backend, query) as pair:
            slow = pair.remote.generate(request())
            await anext(slow)
            for _ in range(2):
                answer = await collect(pair.remote, request())
                assert len(answer) == len(script)
            assert (await backend.stats()).running == 1  # It waits for its reader.
            rest = [event async for event in slow]
            texts = [event.text for event in rest if isinstance(event, Delta)]
            assert len(texts) == count

    run(main)


def test_draining_finishes_what_runs_and_takes_no_more(query: str) -> None:
    async def main() -> None:
        hold = Hold()
        backend = ScriptedBackend(held(hold))
        async with Pair(backend, query) as pair:
            first = asyncio.create_task(collect(pair.remote, request()))
            await hold.reached()
            draining = asyncio.create_task(pair.server.drain())
            late = GrpcTransport("grpc").connect(pair.server.url + query)

            async def refused() -> bool:
                try:
                    await late.start()
                    async with aclosing(late.generate(request(timeout=0.1))) as events:
                        await anext(events)
                        await anext(events)
                        await anext(events)
                except (BackendClosed, ModelLoadFailed):
                    return True
                except DeadlineExceeded:
                    return False
                finally:
                    await late.aclose()
                return False

            await eventually(refused, what="a new client is refused")
            assert not draining.done()
            hold.release()
            await draining
            assert isinstance((await first)[-1], Done)

    run(main)


# --- addresses -----------------------------------------------------------------------------------


def test_nobody_listens(query: str) -> None:
    async def main() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"grpc://127.0.0.1:{free.getsockname()[1]}"
            with pytest.raises(ModelLoadFailed, match=url):
                await GrpcTransport("grpc").connect(url + query).start()

    run(main)


def test_a_port_is_not_shared() -> None:
    async def main() -> None:
        async with Pair(EchoBackend(EchoSettings())) as pair:
            with pytest.raises(ConfigInvalid, match="cannot listen"):
                await pair.transport.serve(pair.backend, pair.server.url)

    run(main)


def test_a_unix_socket_is_private_and_taken_over(socket_folder: Path, query: str) -> None:
    async def main() -> None:
        path = socket_folder / "worker.sock"
        url = f"grpc://{path}"
        process, _ = await spawn(url)
        end(process)
        assert path.exists()
        backend = EchoBackend(EchoSettings())
        await backend.start()
        transport = GrpcTransport("grpc")
        server = await transport.serve(backend, url)
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(socket_folder) == ["worker.sock"]  # noqa: PTH208
        remote = transport.connect(url + query)
        await remote.start()
        assert isinstance((await collect(remote, request()))[-1], Done)
        with pytest.raises(ConfigInvalid, match="another worker"):
            await transport.serve(backend, url)
        assert isinstance((await collect(remote, request()))[-1], Done)
        await remote.aclose()
        await server.aclose()
        await backend.aclose()
        assert not path.exists()

    run(main)


async def spawn(*arguments: str) -> tuple[subprocess.Popen[bytes], str]:
    """`peers.py` with these arguments, and the first line that it prints."""
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), *arguments]
    process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, (await asyncio.to_thread(process.stdout.readline)).decode().strip()


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
