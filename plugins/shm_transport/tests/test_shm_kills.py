"""A thousand kills at random moments, and fifty crashes under sixteen streams: nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import themis_tiny_model
from themis_core.config import WorkerOptions
from themis_core.errors import BackendFailed, ModelLoadFailed, RequestPoisonous, ThemisError
from themis_core.messages import Delta, Done, GenerateRequest, SamplingParams
from themis_core.protocol import RemoteBackend
from themis_core.worker import IsolatedBackend, Spec
from themis_shm_transport.transport import SocketTransport

from .victims import LONG, TEXT, echo

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux"),
]

Tell = Callable[[str], None]
CLIENT_KILLS = WORKER_KILLS = 245  # with each of the two transports
SUPERVISED_KILLS = 20
AT_ONCE = 10
STREAMS = 16
CRASHES = 50
SEED = 20_261


class Zygote:
    """Gives processes to kill."""

    def __init__(self, scheme: str, url: str) -> None:
        script = Path(__file__).with_name("victims.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), scheme, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, what: str) -> int:
        """The process id of a new `client SEED` or `worker`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


@pytest.fixture
def url(scheme: str, socket_folder: Path) -> str:
    return f"{scheme}://{socket_folder}/a.sock"


@pytest.fixture
def zygote(scheme: str, url: str) -> Iterator[Zygote]:
    found = Zygote(scheme, url)
    yield found
    found.close()


def descriptors() -> Counter[str]:
    """What is open, by kind: memfds, sockets, pipes, files. What waits for the collector is not."""
    gc.collect()
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[str(link.readlink()).partition(":")[0]] += 1
        except OSError:
            continue
    return found


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("themis-arena")


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def collect(backend: Any, request: GenerateRequest) -> list[Any]:
    async with aclosing(backend.generate(request)) as found:
        return [event async for event in found]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what is waited for has no event.
            await asyncio.sleep(0.002)


def test_killed_clients_leave_nothing(
    scheme: str, url: str, zygote: Zygote, socket_folder: Path, tell: Tell
) -> None:
    choice = random.Random(SEED)

    async def kill_one(number: int) -> None:
        victim = zygote.fork(f"client {number}")
        await asyncio.sleep(choice.random() * 0.2)
        os.kill(victim, signal.SIGKILL)

    async def main() -> None:
        backend = echo()
        await backend.start()
        server = await SocketTransport(scheme).serve(backend, url)
        bystander = SocketTransport(scheme).connect(url)
        await bystander.start()
        before = descriptors()
        for start in range(0, CLIENT_KILLS, AT_ONCE):
            steady = asyncio.create_task(collect(bystander, GenerateRequest(prompt=TEXT)))
            await asyncio.gather(*(kill_one(start + i) for i in range(AT_ONCE)))
            assert text_of(await steady) == TEXT  # It has noticed nothing.

        async def at_rest() -> bool:
            return not (await backend.stats()).running and not descriptors() - before

        await until(at_rest)
        stats = await backend.stats()
        assert stats.cancelled > CLIENT_KILLS // 2
        await bystander.aclose()
        await server.aclose()
        await backend.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        say = f"{CLIENT_KILLS} clients killed: {stats.requests} requests, {stats.cancelled} cut off"
        tell(f"{scheme}: {say}")

    asyncio.run(main())
    gc.collect()
    assert mappings() == 0
    assert not list(socket_folder.iterdir())


def test_killed_workers_leave_nothing(scheme: str, url: str, zygote: Zygote, tell: Tell) -> None:
    choice = random.Random(SEED)
    outcomes: Counter[str] = Counter()

    async def ask(remote: RemoteBackend, request: GenerateRequest) -> None:
        try:
            events = await collect(remote, request)
        except BackendFailed:
            outcomes["ended with a clear error"] += 1
        else:
            assert isinstance(events[-1], Done)
            outcomes["finished before"] += 1

    async def kill_one(remote: RemoteBackend) -> None:
        victim = zygote.fork("worker")

        async def connected() -> bool:
            with contextlib.suppress(ModelLoadFailed):
                await remote.start()
                return True
            return False

        await until(connected)
        requests = [GenerateRequest(prompt=TEXT) for _ in range(4)] + [LONG] * 2
        tasks = [asyncio.create_task(ask(remote, request)) for request in requests]
        await asyncio.sleep(choice.random() * 0.1)
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(10):  # Nobody is stuck.
            await asyncio.gather(*tasks)
        await remote.aclose()

    async def main() -> None:
        remote = SocketTransport(scheme).connect(url)
        before = descriptors()
        for _ in range(WORKER_KILLS):
            await kill_one(remote)
        assert not descriptors() - before
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    gc.collect()
    assert mappings() == 0
    assert outcomes["ended with a clear error"] > WORKER_KILLS
    assert sum(outcomes.values()) == 6 * WORKER_KILLS
    tell(f"{scheme}: {WORKER_KILLS} workers killed: {dict(outcomes)}")


def test_killed_supervised_workers_are_resumed(tell: Tell) -> None:
    """The same with supervision: every request is finished, and as if nothing had happened."""
    kills = SUPERVISED_KILLS
    choice = random.Random(SEED)

    async def main() -> None:
        spec = Spec(model="echo", backend="echo", settings={"delay": 0.005}, transport="shm")
        options = WorkerOptions(crash_limit=1000, backoff=0.0)
        backend = IsolatedBackend(spec, SocketTransport("shm"), options)
        before = descriptors()
        await backend.start()
        refused: list[ThemisError] = []
        right = 0

        async def ask() -> None:
            nonlocal right
            while backend.worker.restarts < kills:
                try:
                    events = await collect(backend, GenerateRequest(prompt=TEXT))
                except ThemisError as error:
                    refused.append(error)
                else:
                    assert text_of(events) == TEXT
                    right += 1

        async def restarted(number: int) -> bool:
            return backend.worker.state == "ready" and backend.worker.restarts == number

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        for number in range(kills):
            await until(partial(restarted, number))
            await asyncio.sleep(choice.random() * 0.3)
            os.kill(backend.worker.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            await asyncio.gather(*asking)
        status = backend.worker
        await backend.aclose()
        gc.collect()
        assert descriptors() - before == Counter()
        assert all(isinstance(error, RequestPoisonous) for error in refused), refused
        assert status.resumed >= kills
        say = f"{right} right answers, {status.resumed} resumed, {len(refused)} refused"
        tell(f"{kills} supervised kills: {say}")

    asyncio.run(main())


@pytest.mark.timeout(600)  # Fifty times loading a model.
def test_crashes_under_sixteen_streams(tell: Tell) -> None:
    """SIGABRT at fifty random points: the greedy answers are those of an undisturbed run."""
    choice = random.Random(SEED)
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    prompts = [f"{word} " * (1 + i % 3) for i, word in enumerate(TEXT.split()[:STREAMS])]

    async def main() -> None:
        other = IsolatedBackend(
            Spec(model="echo", backend="echo", settings={"delay": 0.01}, transport="shm"),
            SocketTransport("shm"),
        )
        settings = {"path": str(themis_tiny_model.path("gguf-f16")), "threads": 1}
        spec = Spec(
            model="tiny",
            backend="llamacpp",
            settings={**settings, "parallel": STREAMS},
            transport="shm",
        )
        options = WorkerOptions(crash_limit=1000, backoff=0.0)
        backend = IsolatedBackend(spec, SocketTransport("shm"), options)
        await asyncio.gather(backend.start(), other.start())
        alone = [await answer(backend, prompt, params) for prompt in prompts]
        crashes = 0
        while crashes < CRASHES:
            points = sorted(choice.sample(range(1, STREAMS * 24), 5))
            crash = Crashes(backend, points)
            neighbour = asyncio.create_task(collect(other, GenerateRequest(prompt=TEXT)))
            found = await asyncio.gather(
                *(answer(backend, prompt, params, crash) for prompt in prompts)
            )
            assert found == alone
            assert text_of(await neighbour) == TEXT
            crashes += crash.count
        status = backend.worker
        assert other.worker.restarts == 0
        await asyncio.gather(backend.aclose(), other.aclose())
        tell(f"{crashes} crashes under {STREAMS} streams, {status.resumed} resumed")

    pytest.importorskip("llama_cpp")
    asyncio.run(main())


class Crashes:
    """Sends SIGABRT when so many tokens have been seen, over all streams."""

    def __init__(self, backend: IsolatedBackend, points: list[int]) -> None:
        self.count = 0
        self._backend = backend
        self._points = points
        self._seen = 0

    def token(self) -> None:
        """A token has come."""
        self._seen += 1
        worker = self._backend.worker
        if self._points and self._seen >= self._points[0] and worker.state == "ready":
            del self._points[0]
            self.count += 1
            os.kill(worker.pid, signal.SIGABRT)


async def answer(
    backend: Any, prompt: str, params: SamplingParams, crash: Crashes | None = None
) -> list[int]:
    ids: list[int] = []
    request = GenerateRequest(prompt=prompt, sampling=params)
    async with aclosing(backend.generate(request)) as events:
        async for event in events:
            if isinstance(event, Delta):
                ids += event.token_ids
                if crash is not None:
                    crash.token()
    return ids
