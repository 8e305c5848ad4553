"""Sockets and arenas: who may come in, what is left behind, what happens when one side dies."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from themis_core.errors import BackendClosed, BackendFailed, ConfigInvalid, ModelLoadFailed
from themis_core.messages import (
    Done,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    Started,
    Usage,
)
from themis_core.protocol import Kind, Matrix, Message, ProtocolError, RemoteBackend, encode_frame
from themis_core.protocol.codec import Hello, encode
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_shm_transport.address import parse
from themis_shm_transport.arena import AVAILABLE, Arena, PeerArena
from themis_shm_transport.connection import FREE, SLAB, SLAB_PIECE, SocketConnection
from themis_shm_transport.handshake import check_peer
from themis_shm_transport.listening import listen, unlisten
from themis_shm_transport.transport import SocketTransport
from themis_testkit import Hold, ScriptedBackend
from themis_testkit.fakes.scripted import say

linux = pytest.mark.skipif(not AVAILABLE, reason="needs memfd")
MIB = 1 << 20


_loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def event_loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything on both kinds of event loop."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        uvloop.new_event_loop().close()  # The first one opens a pipe for the life of the process.
        monkeypatch.setattr(sys.modules[__name__], "_loop_factory", uvloop.new_event_loop)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A test on an event loop, which must not hang and leave no task and no descriptor."""

    async def limited() -> None:
        async with asyncio.timeout(60):
            await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    before = descriptors()
    with asyncio.Runner(loop_factory=_loop_factory) as runner:
        runner.run(limited())
    gc.collect()
    assert descriptors() <= before


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Vectors(ScriptedBackend):
    """Embeds into a matrix in place, each number of which is the text's."""

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        rows, value = map(int, str(request.inputs[0]).split())
        matrix = Matrix.empty(rows, 1024)
        matrix.memory[:] = bytes([value]) * matrix.memory.nbytes
        return EmbedResponse(embeddings=matrix, usage=Usage())  # type: ignore[arg-type]


class Pair:
    """A server and one client on one loop."""

    def __init__(self, backend: Any, scheme: str, folder: Path, query: str = "") -> None:
        self.backend = backend
        self.transport = SocketTransport(scheme)
        self.path = folder / "worker.sock"
        self.url = f"{scheme}://{self.path}{query}"
        self.remote: RemoteBackend = self.transport.connect(self.url)

    async def __aenter__(self) -> Pair:
        await self.backend.start()
        self.server = await self.transport.serve(self.backend, self.url)
        await self.remote.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remote.aclose()
        await self.server.aclose()
        await self.backend.aclose()
        assert not self.path.exists()

    @property
    def connection(self) -> SocketConnection:
        """The client's."""
        link = self.remote._link
        assert link is not None
        found = link._connection
        assert isinstance(found, SocketConnection)
        return found


async def collect(backend: Any, request: GenerateRequest) -> list[GenerateEvent]:
    async with aclosing(backend.generate(request)) as found:
        return [event async for event in found]


def request(**keys: Any) -> GenerateRequest:
    return GenerateRequest(prompt="x", sampling=SamplingParams(max_tokens=4), **keys)


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("unix:///a.sock", "scheme"),
        ("shm://host/a.sock", "names a host"),
        ("shm:a.sock", "absolute path"),
        ("shm:///", "absolute path"),
        ("shm:///" + "x" * 200, "longer than"),
        ("shm:///a.sock?arena_mib=many", "no number"),
        ("shm:///a.sock?arena_mib=99999999", "at most"),
        ("shm:///a.sock?colour=red", "colour is not known"),
        ("shm:///a.sock?fd=3", "both a path and fd"),
    ],
)
def test_urls_that_cannot_be_used(url: str, why: str) -> None:
    with pytest.raises(ConfigInvalid, match=why):
        parse(url, "shm")


def test_urls_that_can() -> None:
    assert parse("shm:///run/a%20b.sock?arena_mib=2", "shm")[1:] == (
        Path("/run/a b.sock"),
        None,
        2 * MIB,
    )
    assert parse("unix://?fd=7", "unix")[1:] == (None, 7, 0)


# --- the socket ----------------------------------------------------------------------------------


def test_the_socket_is_private_and_its_folder_too(socket_folder: Path) -> None:
    path = socket_folder / "new" / "a.sock"
    sock = listen(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    unlisten(sock, path, path.lstat().st_ino)
    assert list(path.parent.iterdir()) == []


def test_a_dead_workers_path_is_taken_over(socket_folder: Path) -> None:
    path = socket_folder / "a.sock"
    listen(path).close()
    assert path.exists()
    sock = listen(path)
    unlisten(sock, path, path.lstat().st_ino)


def test_a_living_workers_path_is_not(socket_folder: Path) -> None:
    path = socket_folder / "a.sock"
    sock = listen(path)
    with pytest.raises(ConfigInvalid, match="another worker is listening"):
        listen(path)
    unlisten(sock, path, path.lstat().st_ino)


def test_a_successors_path_is_left_alone(socket_folder: Path) -> None:
    path = socket_folder / "a.sock"
    first = listen(path)
    inode = path.lstat().st_ino
    path.rename(socket_folder / "old")
    second = listen(path)
    unlisten(first, path, inode)
    assert path.exists()
    second.close()


def test_a_file_in_the_way_is_not_removed(socket_folder: Path) -> None:
    path = socket_folder / "a.sock"
    path.write_text("precious")
    with pytest.raises(ConfigInvalid, match="something else"):
        listen(path)
    assert path.read_text() == "precious"


def test_a_folder_that_others_may_write_is_refused(socket_folder: Path) -> None:
    folder = socket_folder / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigInvalid, match="other users"):
        listen(folder / "a.sock")


AS_ANOTHER_USER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    print("forbidden")
else:
    print("reset" if sock.recv(100) == b"" else "let in")
"""


def open_up(path: Path) -> None:
    path.parent.chmod(0o755)
    path.chmod(0o666)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("opened", "expected"), [(False, "forbidden"), (True, "reset")])
def test_another_user_cannot_attach(
    scheme: str, socket_folder: Path, opened: bool, expected: str
) -> None:
    async def main() -> None:
        async with Pair(EchoBackend(EchoSettings()), scheme, socket_folder) as pair:
            if opened:  # As a careless administrator would.
                open_up(pair.path)
            command = [sys.executable, "-c", AS_ANOTHER_USER, str(pair.path)]
            found = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, cwd="/"
            )
            assert found.stdout.strip() == expected, found.stderr
            assert await collect(pair.remote, request())

    run(main)


def test_our_own_process_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert check_peer(ours) == os.getpid()


def test_nobody_there_is_a_failed_start(scheme: str, socket_folder: Path) -> None:
    async def main() -> None:
        remote = SocketTransport(scheme).connect(f"{scheme}://{socket_folder}/none.sock")
        with pytest.raises(ModelLoadFailed, match="cannot be reached") as caught:
            await remote.start()
        assert caught.value.remedy
        await remote.aclose()

    run(main)


def test_a_client_connects_again_after_the_worker_came_back(
    scheme: str, socket_folder: Path
) -> None:
    async def main() -> None:
        async with Pair(EchoBackend(EchoSettings()), scheme, socket_folder) as pair:
            await pair.server.aclose()
            with pytest.raises((BackendFailed, BackendClosed)):
                await collect(pair.remote, request())
            pair.server = await pair.transport.serve(pair.backend, pair.url)
            assert isinstance((await collect(pair.remote, request()))[-1], Done)

    run(main)


def test_many_clients(scheme: str, socket_folder: Path) -> None:
    async def main() -> None:
        async with Pair(EchoBackend(EchoSettings()), scheme, socket_folder) as pair:
            clients = [pair.transport.connect(pair.url) for _ in range(20)]
            await asyncio.gather(*(client.start() for client in clients))
            work = [collect(c, GenerateRequest(prompt=f"I am {i}")) for i, c in enumerate(clients)]
            answers = await asyncio.gather(*work)
            for i, events in enumerate(answers):
                assert "".join(getattr(e, "text", "") for e in events) == f"I am {i}"
            await asyncio.gather(*(client.aclose() for client in clients))

    run(main)


# --- hostile peers -------------------------------------------------------------------------------

HEAD = b"TMIS\x01\x00\x00\x00" + bytes(10)
GREETED = HEAD + encode_frame(Message(Kind.HELLO, 0, encode(Hello("themis", 1, 0))))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"TMIS\x07\x00\x00\x00" + bytes(10),  # another major version
        HEAD[:8] + b"\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00",  # an arena without descriptor
        HEAD + b"\xff" * 40,
        GREETED + b"\xff" * 40,
        GREETED + encode_frame(Message(FREE, 4096)),
        GREETED + encode_frame(Message(SLAB, 1, bytes(24))),
        GREETED + encode_frame(Message(SLAB_PIECE, 1, bytes(3))),
        GREETED + encode_frame(Message(250, 1)),
    ],
)
def test_a_hostile_client_is_turned_away_and_the_others_go_on(
    data: bytes, scheme: str, socket_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def main() -> None:
        hold = Hold()
        backend = ScriptedBackend([Started(prompt_tokens=1), hold, *say("a")[1:]])
        async with Pair(backend, scheme, socket_folder) as pair:
            reading = asyncio.create_task(collect(pair.remote, request()))
            await hold.reached()
            reader, writer = await asyncio.open_unix_connection(str(pair.path))
            writer.write(data)
            await reader.read()  # Until it is closed on us.
            writer.close()
            await writer.wait_closed()
            hold.release()
            assert isinstance((await reading)[-1], Done)

    run(main)


@linux
def test_references_outside_the_arena_are_refused() -> None:
    arena = Arena(MIB)
    peer = PeerArena(os.dup(arena.fd), MIB)
    for offset, length in ((0, MIB + 1), (MIB, 1), (1, 10), (0, 0), (2**63, 4096), (4096, MIB)):
        with pytest.raises(ProtocolError, match="not in an arena"):
            peer.view(offset, length, print)
    peer.close()
    arena.close()


@linux
def test_an_arena_is_sealed() -> None:
    arena = Arena(MIB)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 10)
    with pytest.raises(PermissionError):
        fcntl.fcntl(arena.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    import mmap

    with pytest.raises(PermissionError):
        mmap.mmap(arena.fd, MIB)  # Writable.
    arena.close()


@linux
def test_an_arena_that_is_not_sealed_is_refused() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, MIB)
    with pytest.raises(ProtocolError, match="not sealed"):
        PeerArena(fd, MIB)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(ProtocolError, match="no memfd"):
        PeerArena(ours.detach(), MIB)


@linux
def test_blocks_are_found_and_joined_again() -> None:
    arena = Arena(16 * 4096)
    blocks = [arena.allocate(4096) for _ in range(16)]
    assert arena.allocate(1) is None
    for i in (3, 5, 4, 0, 15):
        block = blocks[i]
        assert block is not None
        arena.sent(block)
        arena.returned(block.offset)
    large = arena.allocate(3 * 4096)
    assert large is not None
    assert large.offset == 3 * 4096
    with pytest.raises(ProtocolError, match="nothing is lent"):
        arena.returned(7 * 4096)  # Allocated, but never sent.
    del blocks, block, large
    assert arena.used == 5 * 4096 - 3 * 4096 - 2 * 4096
    arena.close()


# --- bulk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 100, 1024, 20_000])
def test_matrices_of_any_size(scheme: str, rows: int, socket_folder: Path) -> None:
    async def main() -> None:
        query = "?arena_mib=8" if scheme == "shm" else ""
        async with Pair(Vectors(), scheme, socket_folder, query) as pair:
            for value in (7, 9):
                text = f"{rows} {value}"
                response = await pair.remote.embed(EmbedRequest(inputs=(text,)))
                found: object = response.embeddings
                assert isinstance(found, Matrix)
                assert len(found) == rows
                assert found.memory.nbytes == rows * 4096
                assert bytes(found.memory[-4096:]) == bytes([value]) * 4096
                assert found.memory.readonly
                del found, response

    run(main)


@linux
def test_a_matrix_in_place_is_freed_when_its_last_view_is_dropped(socket_folder: Path) -> None:
    async def main() -> None:
        async with Pair(Vectors(), "shm", socket_folder) as pair:
            (session,) = pair.server._sessions  # type: ignore[attr-defined]
            arena = session._connection._ours
            response = await pair.remote.embed(EmbedRequest(inputs=("256 1",)))
            assert arena.used == MIB
            view = response.embeddings.memory[100:200]  # type: ignore[attr-defined]
            del response
            gc.collect()
            await pair.remote.stats()
            assert arena.used == MIB  # A part of it is still looked at.
            del view
            gc.collect()
            await pair.remote.stats()
            await pair.remote.stats()
            assert arena.used == 0

    run(main)


@linux
def test_a_block_that_is_never_sent_is_freed(socket_folder: Path) -> None:
    class Fickle(Vectors):
        async def embed(self, request: EmbedRequest) -> EmbedResponse:
            await super().embed(request)
            raise BackendFailed("I have changed my mind.")

    async def main() -> None:
        async with Pair(Fickle(), "shm", socket_folder) as pair:
            (session,) = pair.server._sessions  # type: ignore[attr-defined]
            for _ in range(3):
                with pytest.raises(BackendFailed, match="changed my mind"):
                    await pair.remote.embed(EmbedRequest(inputs=("4096 1",)))
            gc.collect()
            assert session._connection._ours.used == 0

    run(main)


def test_matrices_outlive_the_connection(scheme: str, socket_folder: Path) -> None:
    async def main() -> None:
        async with Pair(Vectors(), scheme, socket_folder) as pair:
            response = await pair.remote.embed(EmbedRequest(inputs=("256 3",)))
        gc.collect()
        assert response.embeddings[255] == response.embeddings[0]
        assert bytes(response.embeddings.memory[:4]) == b"\3\3\3\3"  # type: ignore[attr-defined]

    run(main)


def test_a_long_prompt_comes_whole_and_cancelling_waits_its_turn(
    scheme: str, socket_folder: Path
) -> None:
    async def main() -> None:
        hold = Hold()
        backend = ScriptedBackend([Started(prompt_tokens=1), hold])
        async with Pair(backend, scheme, socket_folder) as pair:
            ids = tuple(range(2_000_000))
            found = pair.remote.generate(GenerateRequest(prompt=ids))
            await anext(found)
            assert backend.requests[0].prompt == ids
            await found.aclose()
            # Cancelled while it is still on its way.
            late = asyncio.create_task(collect(pair.remote, GenerateRequest(prompt=ids)))
            await asyncio.sleep(0)
            late.cancel()
            await asyncio.gather(late, return_exceptions=True)
            while pair.connection._queued:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            # Where both arrive at once, the backend never hears of the request.
            stats = await collect_stats(pair.remote, 1)
            assert stats.cancelled == stats.requests
            assert stats.requests in (1, 2)

    run(main)


async def collect_stats(remote: RemoteBackend, requests: int) -> Any:
    while True:
        stats = await remote.stats()
        if stats.requests >= requests and not stats.running:
            return stats
        await asyncio.sleep(0.005)


def test_small_messages_pass_large_ones(scheme: str, socket_folder: Path) -> None:
    async def main() -> None:
        async with Pair(
            Vectors(),
            scheme,
            socket_folder,
        ) as pair:
            large = asyncio.create_task(pair.remote.embed(EmbedRequest(inputs=("60000 1",))))
            while not large.done():
                async with asyncio.timeout(10):
                    await pair.remote.stats()
            assert len((await large).embeddings) == 60_000

    run(main)


# --- death and fork ------------------------------------------------------------------------------

WORKER = """
import asyncio, os, sys
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_shm_transport.transport import SocketTransport

async def main():
    backend = EchoBackend(EchoSettings(delay=0.05))
    await backend.start()
    await SocketTransport(sys.argv[1]).serve(backend, sys.argv[2])
    {extra}
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Child:
    """A worker in a process of its own."""

    def __init__(self, scheme: str, path: Path, extra: str = "") -> None:
        self.url = f"{scheme}://{path}"
        code = textwrap.dedent(WORKER).replace("{extra}", extra)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, scheme, self.url], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_a_killed_worker_fails_what_was_in_flight_at_once(scheme: str, socket_folder: Path) -> None:
    with Child(scheme, socket_folder / "a.sock") as child:

        async def main() -> None:
            remote = SocketTransport(scheme).connect(child.url)
            await remote.start()
            prompt = GenerateRequest(prompt="word " * 400)
            streams = [remote.generate(prompt) for _ in range(32)]
            for stream in streams:
                await anext(stream)
            child.process.send_signal(signal.SIGKILL)
            tasks = [asyncio.create_task(rest(stream)) for stream in streams]
            found = await asyncio.gather(*tasks)
            assert all(isinstance(error, BackendFailed) for error in found)
            assert "ended" in str(found[0])
            await remote.aclose()

        run(main)


async def rest(stream: Any) -> BaseException | None:
    try:
        async for _ in stream:
            pass
    except BackendFailed as error:
        return error
    return None


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


GRANDCHILD = """
    import threading, themis_shm_transport.connection as connection

    def fork():
        connection._alive.clear()  # Else the child would close its copies.
        if os.fork() == 0:
            threading.Event().wait(60)
            os._exit(0)

    asyncio.get_running_loop().call_later(0.2, fork)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")
def test_a_grandchild_that_holds_the_socket_hides_nothing(scheme: str, socket_folder: Path) -> None:
    with Child(scheme, socket_folder / "a.sock", GRANDCHILD.strip()) as child:

        async def main() -> None:
            remote = SocketTransport(scheme).connect(child.url)
            await remote.start()
            stream = remote.generate(GenerateRequest(prompt="word " * 400))
            await anext(stream)
            while not (found := children(child.process.pid)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            child.process.send_signal(signal.SIGKILL)
            async with asyncio.timeout(5):
                assert isinstance(await rest(stream), BackendFailed)
            os.kill(int(found[0]), signal.SIGKILL)
            await remote.aclose()

        run(main)


def test_a_killed_client_is_forgotten_by_the_worker(scheme: str, socket_folder: Path) -> None:
    client = """
    import asyncio, sys
    from themis_core.messages import GenerateRequest
    from themis_shm_transport.transport import SocketTransport

    async def main():
        remote = SocketTransport(sys.argv[1]).connect(sys.argv[2])
        await remote.start()
        stream = remote.generate(GenerateRequest(prompt="word " * 400))
        await anext(stream)
        print("running", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
    """

    async def main() -> None:
        backend = EchoBackend(EchoSettings(delay=0.05))
        async with Pair(backend, scheme, socket_folder) as pair:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                textwrap.dedent(client),
                scheme,
                pair.url,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"running\n"
            assert (await backend.stats()).running == 1
            process.kill()
            await process.wait()
            stats = await collect_stats(pair.remote, 1)
            assert stats.cancelled == 1
            while len(pair.server._sessions) > 1:  # type: ignore[attr-defined] # noqa: ASYNC110
                await asyncio.sleep(0.005)

    run(main)


def in_a_forked_child(count: Callable[[], int]) -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # Nothing here may reach pytest.
        os.write(writer, str(count() - 2).encode())
        os._exit(0)
    os.close(writer)
    found = int(os.read(reader, 20))
    os.close(reader)
    os.waitpid(child, 0)
    return found


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_neither_uses_nor_disturbs_the_connection(
    scheme: str, socket_folder: Path
) -> None:
    async def main() -> None:
        async with Pair(EchoBackend(EchoSettings()), scheme, socket_folder) as pair:
            open_here = descriptors()
            # The child has closed its copies of two sockets, two pidfds and the arenas.
            assert in_a_forked_child(descriptors) <= open_here - 2
            assert isinstance((await collect(pair.remote, request()))[-1], Done)

    run(main)
