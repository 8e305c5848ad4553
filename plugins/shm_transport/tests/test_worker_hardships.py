"""Workers in bad company: no descriptors left, nameless signals, orphans, impatient callers."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from themis_core.config import WorkerOptions
from themis_core.errors import BackendFailed, DeadlineExceeded, ModelLoadFailed
from themis_core.messages import GenerateRequest
from themis_core.worker.process import WorkerProcess
from themis_core.worker.spec import Spec
from themis_core.worker.suspects import Suspect

from .test_worker_isolated import TEXT, collect, is_running, on_echo, run, text_of, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

PLUGIN = """
import asyncio, os, sys, time
from themis_core.hooks import BackendPlugin, hookimpl
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings

@hookimpl
def themis_backends():
    return [BackendPlugin(name="hard", help="", settings=EchoSettings, factory="hard_plugin:Hard")]

class Hard(EchoBackend):
    async def start(self):
        print("loading", flush=True)
        if self._settings.prefix == "orphan":
            if os.fork():
                os.abort()
            time.sleep(3)
            os._exit(0)
        if self._settings.prefix == "slow":
            await asyncio.sleep(3600)
        if self._settings.prefix == "whisper":
            sys.stdout.write("the GPU has fallen off the bus")
            sys.stdout.flush()
            os._exit(3)
        await super().start()
"""


@pytest.fixture
def hard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], WorkerProcess]:
    """A process whose backend does what its prefix says."""
    (tmp_path / "hard_plugin.py").write_text(PLUGIN)
    info = tmp_path / "hard-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: hard\nVersion: 1.0\nRequires-Dist: themis-core\n"
    )
    (info / "entry_points.txt").write_text("[themis]\nhard = hard_plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(prefix: str) -> WorkerProcess:
        return WorkerProcess(
            Spec(model="hard", backend="hard", settings={"prefix": prefix}, transport="shm")
        )

    return make


@pytest.mark.parametrize(
    "why", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a defect")]
)
def test_a_restart_that_fails_is_told_to_those_who_wait_and_tried_again(why: Exception) -> None:
    async def check(backend: Any) -> None:
        found = backend.generate(GenerateRequest(prompt=TEXT))
        await anext(found)

        def fail(*_: Any) -> None:
            raise why

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WorkerProcess, "_begin", fail)
            os.kill(backend.worker.pid, signal.SIGKILL)
            with pytest.raises(BackendFailed, match=r"Too many open files|a defect"):
                async for _ in found:
                    pass
        await until(lambda: backend.worker.state == "ready")
        assert text_of(await collect(backend, GenerateRequest(prompt=TEXT))) == TEXT

    on_echo(check, WorkerOptions(crash_limit=1000, backoff=0.01, backoff_max=0.01), delay=0.005)


def test_a_signal_without_a_name(caplog: pytest.LogCaptureFixture) -> None:
    async def check(backend: Any) -> None:
        os.kill(backend.worker.pid, 40)
        await until(lambda: len(backend.worker.exits) == 1)
        assert backend.worker.exits[0].reason == "was ended by signal 40"
        assert text_of(await collect(backend, GenerateRequest(prompt=TEXT))) == TEXT

    on_echo(check)


def test_those_who_wait_for_a_suspect_have_their_deadline() -> None:
    async def check(backend: Any) -> None:
        suspect = Suspect()
        for _ in range(2):
            suspect.struck(alone=False)
        async with backend._gate.enter(suspect):
            with pytest.raises(DeadlineExceeded):
                await collect(backend, GenerateRequest(prompt=TEXT, timeout=0.05))
        assert text_of(await collect(backend, GenerateRequest(prompt=TEXT))) == TEXT

    on_echo(check)


def test_settings_that_are_longer_than_a_line_is_usually() -> None:
    async def check(backend: Any) -> None:
        answer = text_of(await collect(backend, GenerateRequest(prompt="hello")))
        assert answer.startswith("xxx")

    on_echo(check, prefix="x" * 100_000)


def test_a_child_of_a_worker_that_died_cannot_hold_its_parent_up(
    hard: Callable[[str], WorkerProcess],
) -> None:
    async def main() -> None:
        with pytest.raises(ModelLoadFailed, match="SIGABRT while it loaded"):
            await hard("orphan").start()

    run(main)


def test_last_words_need_no_end_of_line(hard: Callable[[str], WorkerProcess]) -> None:
    async def main() -> None:
        with pytest.raises(ModelLoadFailed, match="fallen off the bus"):
            await hard("whisper").start()

    run(main)


def test_a_worker_that_is_told_to_stop_does_not_load_to_the_end(
    hard: Callable[[str], WorkerProcess],
) -> None:
    async def main() -> None:
        process = hard("slow")
        starting = asyncio.create_task(process.start())
        await until(lambda: "loading" in process._lines)
        os.kill(process.pid, signal.SIGTERM)
        with pytest.raises(ModelLoadFailed, match="exit code 0"):
            await starting

    run(main)


def test_a_stop_that_is_cancelled_leaves_no_process(
    hard: Callable[[str], WorkerProcess],
) -> None:
    async def main() -> None:
        process = hard("")
        await process.start()
        pid = process.pid
        os.kill(pid, signal.SIGSTOP)
        stopping = asyncio.create_task(process.stop(60.0))
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
        assert stopping.cancelled()
        assert not is_running(pid)

    run(main)
