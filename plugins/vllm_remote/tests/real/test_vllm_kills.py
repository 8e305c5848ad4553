"""A worker with vLLM's engine, and what is left when one of the two is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from themis_core.config.settings import WorkerOptions
from themis_core.messages import Delta, GenerateRequest, SamplingParams
from themis_core.plugins import Registry
from themis_core.worker import IsolatedBackend
from themis_core.worker.making import find_transport
from themis_core.worker.spec import Spec
from themis_testkit.conformance.base import begin, complete, eventually

from .conftest import ENGINE_SETTINGS
from .servers import QUIET

REQUEST = GenerateRequest(
    prompt="The", sampling=SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True)
)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers inherit the environment."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


def descendants(process: int) -> set[int]:
    """All processes below one, from the system's lists."""
    found: set[int] = set()
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(processes: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    return {p for p in processes if _state(p) not in ("", "Z", "X")}


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def engine_below(process: int) -> int:
    """vLLM names its engine so."""
    for child in descendants(process):
        name = Path(f"/proc/{child}/comm").read_text()
        if "Engine" in name:
            return child
    raise AssertionError(f"no engine below {process}")


def test_the_engine_is_killed_and_the_stream_goes_on(quiet: None) -> None:
    """The worker ends with its engine, another one takes over, and the caller sees one answer."""

    async def main() -> None:
        spec = Spec(model="large", backend="vllm_engine", settings=ENGINE_SETTINGS, transport="shm")
        options = WorkerOptions(stop_timeout=30.0)
        backend = IsolatedBackend(spec, find_transport(Registry(), "shm"), options)
        await backend.start()
        try:
            whole = (await complete(backend, REQUEST)).choices[0].token_ids
            worker = next(iter(_workers()))
            below = descendants(worker)
            seen: list[int] = []
            async with aclosing(await begin(backend, REQUEST)) as events:
                os.kill(engine_below(worker), signal.SIGKILL)
                async for event in events:
                    seen += event.token_ids if isinstance(event, Delta) else ()
            assert tuple(seen) == whole[-len(seen) :]
            assert len(seen) > len(whole) // 2
            assert not alive(below)
            assert (await complete(backend, REQUEST)).choices[0].token_ids == whole
        finally:
            await backend.aclose()
        assert not _workers()

    asyncio.run(main())


def _workers() -> set[int]:
    mine = descendants(os.getpid())
    return {p for p in mine if b"themis_core.worker" in Path(f"/proc/{p}/cmdline").read_bytes()}


def test_no_engine_outlives_a_worker_that_is_killed(quiet: None, tmp_path: Path) -> None:
    """The worker cannot do anything about it any more; the kernel does."""
    lines = [f"{key} = {_toml(value)}" for key, value in ENGINE_SETTINGS.items() if key != "engine"]
    inner = [f"{key} = {_toml(value)}" for key, value in ENGINE_SETTINGS["engine"].items()]
    config = tmp_path / "worker.toml"
    config.write_text(
        "\n".join(
            ["[models.large]", 'backend = "vllm_engine"', *lines, "[models.large.engine]", *inner]
        )
    )
    url = f"unix://{tmp_path}/w.sock"
    command = [sys.executable, "-m", "themis_core.cli", "worker", "-c", str(config)]

    async def gone(below: Callable[[], set[int]]) -> bool:
        return not alive(below())

    process = subprocess.Popen([*command, "--listen", url], stderr=subprocess.PIPE, text=True)

    async def main() -> None:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "Themis hosts large" in line:
                    break
            below = descendants(process.pid)
            assert engine_below(process.pid) in below
            process.kill()
            await asyncio.to_thread(process.wait, 60)
            await eventually(lambda: gone(lambda: below), what="the engine has ended")
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    asyncio.run(main())


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
