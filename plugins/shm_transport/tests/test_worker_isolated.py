"""Models in workers: started, supervised, restarted, and carried on where they died."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar

import pytest

import themis_core
import themis_tiny_model
from themis_core.config import WorkerOptions
from themis_core.contracts import Backend
from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    ConfigInvalid,
    DeadlineExceeded,
    ModelFileInvalid,
    ModelLoadFailed,
    RequestPoisonous,
)
from themis_core.messages import (
    Delta,
    Done,
    EmbedRequest,
    Finished,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    Started,
)
from themis_core.worker import IsolatedBackend, Spec
from themis_shm_transport.transport import SocketTransport
from themis_testkit import BackendConformance
from themis_testkit.conformance import BackendFactory
from themis_testkit.conformance.answers import AnswerChecks
from themis_testkit.conformance.cancelling import CancellationChecks
from themis_testkit.conformance.lifecycle import LifecycleChecks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

TEXT = "one two three four five six seven eight nine ten " * 4


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """A test on an event loop, which must not hang and leave no task, child or descriptor."""

    async def limited() -> None:
        async with asyncio.timeout(120):
            await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    before, others = descriptors(), children()
    asyncio.run(limited())
    assert children() == others
    assert descriptors() <= before


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def children() -> list[str]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += (task / "children").read_text().split()
    return found


def echo(scheme: str = "shm", options: WorkerOptions | None = None, **settings: Any) -> Any:
    spec = Spec(model="echo", backend="echo", settings=settings, transport=scheme)
    return IsolatedBackend(spec, SocketTransport(scheme), options)


def on_echo(
    check: Callable[[Any], Coroutine[Any, Any, None]],
    options: WorkerOptions | None = None,
    **settings: Any,
) -> None:
    async def main() -> None:
        backend = echo(options=options, **settings)
        await backend.start()
        try:
            await check(backend)
        finally:
            await backend.aclose()

    run(main)


async def collect(backend: Any, request: GenerateRequest) -> list[GenerateEvent]:
    async with aclosing(backend.generate(request)) as found:
        return [event async for event in found]


def text_of(events: list[GenerateEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


class TestEchoIsolated(BackendConformance):
    """The contract, across a real process."""

    prompt: ClassVar[str] = "The quick brown fox jumps over the lazy dog. " * 24
    has_one_answer: ClassVar[bool] = True

    @pytest.fixture
    def backend_factory(self, scheme: str) -> BackendFactory:
        return lambda: echo(scheme, delay=0.001)


class TestLlamaCppIsolated(LifecycleChecks, AnswerChecks, CancellationChecks):
    """A part of the same with a model that computes: the rest crosses no more than this."""

    @pytest.fixture
    def backend_factory(self) -> BackendFactory:
        pytest.importorskip("llama_cpp")
        settings = {"path": str(themis_tiny_model.path("gguf-f16")), "threads": 1, "parallel": 16}
        spec = Spec(model="tiny", backend="llamacpp", settings=settings, transport="shm")
        return lambda: IsolatedBackend(spec, SocketTransport("shm"))

    @pytest.fixture
    def broken_backend_factory(self, tmp_path: Path) -> BackendFactory:
        pytest.importorskip("llama_cpp")
        settings = {"path": str(tmp_path / "missing.gguf")}
        spec = Spec(model="tiny", backend="llamacpp", settings=settings, transport="shm")
        return lambda: IsolatedBackend(spec, SocketTransport("shm"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_requests_are_carried_on(number: signal.Signals) -> None:
    async def check(backend: Any) -> None:
        undisturbed = await collect(backend, GenerateRequest(prompt=TEXT))
        tasks = [
            asyncio.create_task(collect(backend, GenerateRequest(prompt=TEXT))) for _ in range(8)
        ]
        await asyncio.sleep(0.1)
        os.kill(backend.worker.pid, number)
        assert await asyncio.gather(*tasks) == [undisturbed] * 8
        status = backend.worker
        assert (status.state, status.restarts, status.resumed) == ("ready", 1, 8)
        assert status.exits[0].signal == number.name
        assert len(status.exits[0].requests) == 8
        stats = await backend.stats()
        assert stats.finished >= 8

    on_echo(check, delay=0.005)


def test_without_resume_the_error_says_how_the_worker_ended() -> None:
    async def check(backend: Any) -> None:
        request = GenerateRequest(prompt=TEXT)
        found = backend.generate(request)
        await anext(found)
        os.kill(backend.worker.pid, signal.SIGSEGV)
        with pytest.raises(BackendFailed, match="ended by SIGSEGV") as caught:
            async for _ in found:
                pass
        assert request.request_id in str(caught.value)
        assert caught.value.retryable
        assert text_of(await collect(backend, request)) == TEXT  # The next worker.

    on_echo(check, WorkerOptions(resume=False), delay=0.005)


def test_the_deadline_holds_while_the_worker_is_restarted() -> None:
    async def check(backend: Any) -> None:
        found = backend.generate(GenerateRequest(prompt=TEXT, timeout=0.05))
        await anext(found)
        os.kill(backend.worker.pid, signal.SIGKILL)
        with pytest.raises(DeadlineExceeded):
            async for _ in found:
                pass

    on_echo(check, delay=0.02)


def test_a_stopped_worker_is_not_mistaken_for_a_dead_one() -> None:
    async def check(backend: Any) -> None:
        reading = asyncio.create_task(collect(backend, GenerateRequest(prompt=TEXT)))
        await asyncio.sleep(0.05)
        os.kill(backend.worker.pid, signal.SIGSTOP)
        await asyncio.sleep(0.2)
        assert not reading.done()
        os.kill(backend.worker.pid, signal.SIGCONT)
        assert text_of(await reading) == TEXT
        assert backend.worker.restarts == 0

    on_echo(check, delay=0.005)


def test_closing_a_stuck_worker_kills_it() -> None:
    async def main() -> None:
        backend = echo(options=WorkerOptions(stop_timeout=0.1))
        await backend.start()
        os.kill(backend.worker.pid, signal.SIGSTOP)
        await backend.aclose()

    run(main)


def test_a_crash_loop_ends_in_a_clear_error_and_passes() -> None:
    async def check(backend: Any) -> None:
        for _ in range(2):
            await backend.tokenize("wait for the worker")
            os.kill(backend.worker.pid, signal.SIGKILL)
            await until(lambda: not backend.worker.pid)
        with pytest.raises(BackendFailed, match="crashed 2 times within 2 seconds") as caught:
            await collect(backend, GenerateRequest(prompt=TEXT))
        assert "SIGKILL" in str(caught.value)
        assert backend.worker.state == "crash loop"
        await until(lambda: backend.worker.state == "ready")
        assert text_of(await collect(backend, GenerateRequest(prompt=TEXT))) == TEXT

    on_echo(check, WorkerOptions(crash_limit=2, crash_window=2.0, backoff=0.0))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event.
        await asyncio.sleep(0.005)


POISON = """
import os
from themis_core.errors import BackendFailed
from themis_core.hooks import BackendPlugin, hookimpl
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings

@hookimpl
def themis_backends():
    factory = "poison_plugin:Poisonable"
    return [BackendPlugin(name="poison", help="Dies.", settings=EchoSettings, factory=factory)]

class Poisonable(EchoBackend):
    async def start(self):
        print("loading", flush=True)
        if self._settings.prefix == "die":
            os.abort()
        if self._settings.prefix == "exit":
            raise SystemExit(7)
        await super().start()

    async def generate(self, request):
        async for event in super().generate(request):
            yield event
            if "poison" in str(request.prompt):
                os.abort()
            if "break" in str(request.prompt):
                self.broken = True
                raise BackendFailed("The engine has ended.")

    broken = False

    @property
    def info(self):
        if self.broken:
            raise BackendFailed("The engine has ended.")
        return super().info

    async def embed(self, request):
        os.abort()
"""


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., IsolatedBackend]:
    """A backend that dies of the word."""
    (tmp_path / "poison_plugin.py").write_text(POISON)
    info = tmp_path / "poison-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: poison\nVersion: 1.0\nRequires-Dist: themis-core\n"
    )
    (info / "entry_points.txt").write_text("[themis]\npoison = poison_plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(**settings: Any) -> IsolatedBackend:
        spec = Spec(model="poison", backend="poison", settings=settings, transport="shm")
        options = WorkerOptions(crash_limit=20, backoff=0.0)
        return IsolatedBackend(spec, SocketTransport("shm"), options)

    return make


def test_a_poisonous_request_is_refused_and_the_others_go_on(
    poison: Callable[..., IsolatedBackend],
) -> None:
    async def main() -> None:
        backend = poison(delay=0.01)
        await backend.start()
        try:
            good = [
                asyncio.create_task(collect(backend, GenerateRequest(prompt=TEXT)))
                for _ in range(6)
            ]
            await asyncio.sleep(0.1)
            with pytest.raises(RequestPoisonous, match="SIGABRT"):
                await collect(backend, GenerateRequest(prompt="this is poison"))
            assert [text_of(events) for events in await asyncio.gather(*good)] == [TEXT] * 6
            status = backend.worker
            assert status.poisonous == 1
            assert status.restarts <= 4
        finally:
            await backend.aclose()

    run(main)


def test_alone_a_poisonous_request_costs_two_workers(
    poison: Callable[..., IsolatedBackend],
) -> None:
    async def main() -> None:
        backend = poison()
        await backend.start()
        try:
            with pytest.raises(RequestPoisonous):
                await collect(backend, GenerateRequest(prompt="poison"))
            assert len(backend.worker.exits) == 2
            with pytest.raises(RequestPoisonous):
                await backend.embed(EmbedRequest(inputs=("x",)))
            assert len(backend.worker.exits) == 4
        finally:
            await backend.aclose()

    run(main)


def test_a_backend_that_fails_for_good_gets_a_new_worker(
    poison: Callable[..., IsolatedBackend],
) -> None:
    """Its process lives on, but is of no more use."""

    async def main() -> None:
        backend = poison()
        await backend.start()
        try:
            first = backend.worker.pid
            request = GenerateRequest(prompt="break it", timeout=20)
            with pytest.raises((BackendFailed, RequestPoisonous)):
                await collect(backend, request)
            assert text_of(await collect(backend, GenerateRequest(prompt=TEXT))) == TEXT
            assert backend.worker.pid != first
        finally:
            await backend.aclose()

    run(main)


@pytest.mark.parametrize(
    ("how", "why"), [("die", "SIGABRT while it loaded"), ("exit", "exit code")]
)
def test_dying_while_loading_is_a_failed_start(
    how: str, why: str, poison: Callable[..., IsolatedBackend]
) -> None:
    async def main() -> None:
        backend = poison(prefix=how)
        with pytest.raises(ModelLoadFailed, match=why):
            await backend.start()
        with pytest.raises(BackendClosed):
            _ = backend.info
        await backend.aclose()

    run(main)


def test_the_error_of_loading_is_that_of_the_backend(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")

    async def main() -> None:
        path = tmp_path / "bad.gguf"
        path.write_bytes(b"not a model")
        spec = Spec(model="bad", backend="llamacpp", settings={"path": str(path)}, transport="shm")
        backend = IsolatedBackend(spec, SocketTransport("shm"))
        with pytest.raises(ModelFileInvalid) as caught:
            await backend.start()
        assert str(path) in str(caught.value)

    run(main)


def test_the_log_of_the_worker_is_kept(
    poison: Callable[..., IsolatedBackend], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "themis.worker")

    async def main() -> None:
        backend = poison()
        await backend.start()
        os.kill(backend.worker.pid, signal.SIGABRT)
        await until(lambda: len(backend.worker.exits) == 1)
        log = backend.worker.exits[0].log
        assert "loading" in log
        assert any("Aborted" in line for line in log)  # Python's own account of the crash.
        await backend.aclose()

    run(main)
    assert any("loading" in record.message for record in caplog.records)


PARENT = """
import asyncio, sys
import themis_core

async def main():
    async with themis_core.open(sys.argv[1]) as runtime:
        await runtime.model_info()
        backend = await runtime._pool.lease("echo")
        print(backend.worker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

CONFIG = """
[models.echo]
backend = "echo"
isolation = "worker"

[models.echo.worker]
crash_limit = 3
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_the_worker_ends_with_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    config = tmp_path / "themis.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(config)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, signal.SIGSTOP)  # A worker that can do nothing by itself.
    parent.send_signal(number)
    if number == signal.SIGSTOP:
        parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while is_running(worker):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_isolation_is_one_word_of_configuration(tmp_path: Path) -> None:
    config = tmp_path / "themis.toml"
    config.write_text(CONFIG)

    async def main() -> None:
        async with themis_core.open(config) as runtime:
            completion = await runtime.complete(GenerateRequest(prompt="Hello, you"))
            assert completion.text == "Hello, you"
            assert len(children()) == 1
            (status,) = runtime.models()
            assert status.worker is not None
            assert (status.worker.state, status.worker.pid) == ("ready", int(children()[0]))

    run(main)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[models.a]\nbackend = "echo"\nworker = { resume = false }', "no effect"),
        ('[models.a]\nbackend = "echo"\nisolation = "moon"', "isolation"),
        (
            '[models.a]\nbackend = "echo"\nisolation = "worker"\nworker = { crash_limt = 3 }',
            "crash_limit",
        ),
        (
            '[models.a]\nbackend = "echo"\nisolation = "worker"\nworker = { crash_limit = 0 }',
            "crash_limit",
        ),
    ],
)
def test_wrong_configuration_is_told(text: str, why: str, tmp_path: Path) -> None:
    config = tmp_path / "themis.toml"
    config.write_text(text)
    with pytest.raises(ConfigInvalid, match=why):
        themis_core.open(config)


def test_the_command_hosts_a_model_for_others(scheme: str, socket_folder: Path) -> None:
    config = socket_folder / "themis.toml"
    config.write_text('[models.parrot]\nbackend = "echo"\ndelay = 0.01\n')
    path = socket_folder / "a.sock"
    command = [sys.executable, "-m", "themis_core.cli", "worker", "-c", str(config)]
    process = subprocess.Popen(
        [*command, "--listen", f"{scheme}://{path}"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert f"hosts parrot at {scheme}://{path}" in line
    client = socket_folder / "client.toml"
    client.write_text(f'[models.far]\nbackend = "{scheme}"\npath = "{path}"\n')

    async def main() -> None:
        async with themis_core.open(client) as runtime:
            events = runtime.generate(GenerateRequest(prompt=TEXT))
            assert isinstance(await anext(events), Started)
            process.send_signal(signal.SIGTERM)  # It finishes what runs, and then ends.
            rest = [event async for event in events]
            assert text_of(rest) == TEXT
            assert isinstance(rest[-1], Done)

    run(main)
    assert process.wait(30) == 0
    process.stderr.close()
    assert not path.exists()


def test_the_command_refuses_what_it_cannot_do(socket_folder: Path) -> None:
    for url, why in (("carrier://x", "carrier"), ("shm://host/x", "names a host")):
        command = [sys.executable, "-m", "themis_core.cli", "worker", "--listen", url]
        found = subprocess.run(
            command, capture_output=True, text=True, cwd=socket_folder, timeout=60, check=False
        )
        assert found.returncode == 2
        assert why in found.stderr
        assert "Traceback" not in found.stderr


# --- exactly the same answer ---------------------------------------------------------------------


def greedy(backend_name: str) -> dict[str, Any]:
    if backend_name == "reference":
        return {"path": str(themis_tiny_model.path("hf"))}
    pytest.importorskip("llama_cpp")
    return {"path": str(themis_tiny_model.path("gguf-f16")), "threads": 1, "parallel": 16}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0, max_tokens=40),
        SamplingParams(temperature=0.0, max_tokens=40, logprobs=2, min_tokens=30),
        SamplingParams(temperature=0.0, max_tokens=40, frequency_penalty=1.0),
        SamplingParams(temperature=0.0, max_tokens=40, stop=("never", "e q")),
        SamplingParams(temperature=1.0, max_tokens=40, seed=5, top_p=0.9),
        SamplingParams(temperature=0.0, max_tokens=40, repetition_penalty=1.3, ignore_eos=True),
    ],
    ids=["greedy", "logprobs", "penalty", "stop", "seed", "repetition"],
)
def test_a_resumed_answer_is_the_same(params: SamplingParams) -> None:
    async def main() -> None:
        spec = Spec(
            model="tiny", backend="reference", settings=greedy("reference"), transport="shm"
        )
        backend: Backend = IsolatedBackend(spec, SocketTransport("shm"))
        await backend.start()
        try:
            request = GenerateRequest(prompt="The capital of France is", sampling=params)
            expected = await collect(backend, request)
            found: list[GenerateEvent] = []
            async with aclosing(backend.generate(request)) as events:
                async for event in events:
                    found.append(event)
                    if len(found) == 14:
                        os.kill(backend.worker.pid, signal.SIGABRT)  # type: ignore[attr-defined]
            assert text_of(found) == text_of(expected)
            assert ids_of(found) == ids_of(expected)
            assert [e for e in found if isinstance(e, Finished)] == [
                e for e in expected if isinstance(e, Finished)
            ]
            done, other = found[-1], expected[-1]
            assert isinstance(done, Done)
            assert isinstance(other, Done)
            assert done.usage.completion_tokens == other.usage.completion_tokens
            assert done.usage.prompt_tokens == other.usage.prompt_tokens
        finally:
            await backend.aclose()

    run(main)


def ids_of(events: list[GenerateEvent]) -> list[int]:
    return [token for e in events if isinstance(e, Delta) for token in e.token_ids]
