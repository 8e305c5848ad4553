"""The servers that are compared: each a child process with the same model and threads."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

_START_SECONDS = 120
_STOP_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Load:
    """What every server must be ready for. `context` is per sequence, in tokens.

    `settings` are settings of Themis's model that differ from those of the benchmark.
    """

    model: Path
    context: int
    parallel: int
    threads: int
    settings: Mapping[str, Any] = field(default_factory=dict)


class ServerFailed(Exception):
    """A server did not start; the message has the end of its output."""


class Peer(ABC):
    """A kind of server."""

    name: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]
    # Fields that its API needs to generate exactly `max_tokens`.
    extra: ClassVar[dict[str, Any]] = {}
    ready_path: ClassVar[str] = "/health"

    @abstractmethod
    def command(self, load: Load, port: int, folder: Path) -> list[str]:
        """The command line; files that it needs may be written into `folder`."""

    def versions(self) -> dict[str, str]:
        """Installed versions of the packages that are measured."""
        return {name: importlib.metadata.version(name) for name in self.distributions}


class Themis(Peer):
    """`themis serve` with the llama.cpp backend in its own process."""

    name = "themis"
    distributions = ("themis-core", "themis-llamacpp", "llama-cpp-python")
    extra = {"ignore_eos": True}

    def command(self, load: Load, port: int, folder: Path) -> list[str]:
        """A `themis.toml` with the model, and the server on it."""
        config = themis_config(load, folder)
        themis = Path(sys.executable).with_name("themis")
        return [str(themis), "serve", "-c", str(config), "--port", str(port)]


def themis_config(load: Load, folder: Path) -> Path:
    """Write a `themis.toml` with the model as `bench`."""
    settings = {
        "backend": "llamacpp",
        "path": str(load.model),
        "context": load.context,
        "parallel": load.parallel,
        "threads": load.threads,
        # As the C++ server is set: a part of the KV cache for each sequence, none of it shared.
        "kv_unified": False,
        "preload": True,
        **load.settings,
    }
    # JSON's strings, numbers and booleans are TOML's too.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    config = folder / "themis.toml"
    config.write_text('default = "bench"\n\n[models.bench]\n' + "".join(lines))
    return config


class Native(Peer):
    """llama.cpp's own C++ server, from the wheel of xllamacpp."""

    name = "llama.cpp server"
    distributions = ("xllamacpp",)
    extra = {"ignore_eos": True}

    def command(self, load: Load, port: int, folder: Path) -> list[str]:
        """A small script that starts the embedded server."""
        settings = {
            "model": str(load.model),
            "port": port,
            "parallel": load.parallel,
            "context": load.context,
            "threads": load.threads,
        }
        script = Path(__file__).with_name("xllamacpp_server.py")
        return [sys.executable, str(script), json.dumps(settings)]


class LlamaCppPython(Peer):
    """The server that llama-cpp-python brings. It computes one request after the other."""

    name = "llama_cpp.server"
    distributions = ("llama-cpp-python",)
    ready_path = "/v1/models"

    def command(self, load: Load, port: int, folder: Path) -> list[str]:
        """Its defaults, save two that would make it slower and one that breaks answers off."""
        options = {
            "host": "127.0.0.1",
            "port": port,
            "model": load.model,
            "model_alias": "bench",
            "n_ctx": load.context,
            "n_threads": load.threads,
            "n_threads_batch": load.threads,
            "logits_all": "false",
            "flash_attn": "true",
            "interrupt_requests": "false",
            "verbose": "false",
        }
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        return [sys.executable, "-m", "llama_cpp.server", *arguments]


PEERS: tuple[type[Peer], ...] = (Themis, Native, LlamaCppPython)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    peer: Peer
    port: int
    pid: int


@asynccontextmanager
async def running(peer: Peer, load: Load) -> AsyncIterator[Server]:
    """Start a server, wait until it answers, and stop it after the block."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as probe:
        folder = Path(name)
        port = probe.getsockname()[1]
        probe.close()
        log = folder / "output.log"
        # Nothing of this machine's own configuration may change what is measured.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("THEMIS_")}
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *peer.command(load, port, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        try:
            if not await _answers(peer, port, process):
                tail = log.read_text("utf-8", "replace")[-2000:]
                code = process.returncode
                raise ServerFailed(f"{peer.name} did not start (exit code {code}):\n{tail}")
            yield Server(peer, port, process.pid)
        finally:
            await _stop(process)


async def _answers(peer: Peer, port: int, process: Process) -> bool:
    """Wait until the server is ready. False if it ends, or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.returncode is None:
        with suppress(OSError):  # It does not listen yet.
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {peer.ready_path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return True
        await asyncio.sleep(0.2)
    return False


async def _stop(process: Process) -> None:
    with suppress(ProcessLookupError):  # It has ended by itself.
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
