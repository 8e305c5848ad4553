"""Real vLLM: the fixtures start each server when it is first needed. See `servers.py`."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from themis_core.contracts import Backend
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)
from themis_core.plugins import Registry
from themis_core.worker.making import transport_for

from .servers import GENERATE, GUIDANCE, MODEL, QUIET, Server

pytest.importorskip("vllm")

ENGINE_SETTINGS: dict[str, Any] = {
    "path": MODEL,
    "dtype": "float32",
    "context": 2048,
    "parallel": 16,
    "max_adapters": 2,
    "max_adapter_rank": 8,
    "engine": {
        "enforce_eager": True,
        "max_num_batched_tokens": 2048,
        "kv_cache_memory_bytes": 128 << 20,
    },
}


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """For logs and sockets, whose paths must be short."""
    path = Path(tempfile.mkdtemp(prefix="vllm-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# For writing tests: ports of servers that run already.
RUNNING = {kind: os.environ.get(f"THEMIS_VLLM_{kind}_PORT") for kind in ("HTTP", "GRPC")}


@pytest.fixture(scope="session")
def launched(folder: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the tests of this session need, started at once: most of starting is importing."""
    items = request.session.items
    needed = {name for item in items for name in getattr(item, "fixturenames", ())}
    if "request" in needed:  # Tests that choose while they run.
        needed |= {"http_server", "grpc_server", "engine_host"}
    found: dict[str, Any] = {}
    try:
        if "http_server" in needed:
            found["http_server"] = _server("HTTP", GENERATE, folder / "http.log")
        if "grpc_server" in needed:
            arguments = ["--grpc", "--structured-outputs-config", GUIDANCE]
            found["grpc_server"] = _server("GRPC", arguments, folder / "grpc.log")
        if "engine_host" in needed:
            found["engine_host"] = EngineHost(folder)
        yield found
    finally:
        for one in found.values():
            one.end()


def _server(kind: str, arguments: list[str], log: Path) -> Server:
    port = RUNNING[kind]
    return Server.running(int(port)) if port else Server(arguments, log)


@pytest.fixture(scope="session")
def http_server(launched: dict[str, Any]) -> Server:
    """Everything that generates, over HTTP."""
    server: Server = launched["http_server"]
    server.wait_http()
    return server


@pytest.fixture(scope="session")
def grpc_server(launched: dict[str, Any]) -> Server:
    """vLLM's gRPC service."""
    server: Server = launched["grpc_server"]
    server.wait_port()
    return server


@pytest.fixture(scope="session")
def engine_host(launched: dict[str, Any]) -> EngineHost:
    """An `AsyncLLM` behind transports."""
    host: EngineHost = launched["engine_host"]
    return host


class EngineHost:
    """The process of `engine_host.py`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        with (folder / "engine.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("engine_host.py")), _settings()],
                env=os.environ | QUIET,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._ready = False

    def new(self, scheme: str) -> str:
        """Serve a fresh backend; returns its URL."""
        url = f"{scheme}://{self._folder}/{next(self._numbers)}.sock"
        self._ask({"new": url})
        return url

    def close(self, url: str) -> None:
        """End it."""
        self._ask({"close": url})

    def end(self) -> None:
        """End the process, which ends its engine."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            if self._ready:
                self.process.wait(30)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _ask(self, command: dict[str, str]) -> None:
        assert self.process.stdin is not None
        with self._lock:
            if not self._ready:
                self._answer()  # That it has loaded the model.
                self._ready = True
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            self._answer()

    def _answer(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"error"'):  # vLLM writes there too.
                error = json.loads(line)["error"]
                assert not error, error
                return
        log = (self._folder / "engine.log").read_text()
        raise AssertionError(f"the engine's host has ended:\n{log[-4000:]}")


def _settings() -> str:
    return json.dumps(ENGINE_SETTINGS)


class Hosted:
    """A fresh backend in the host, as its client sees it."""

    def __init__(self, host: EngineHost, scheme: str) -> None:
        self._host = host
        self._scheme = scheme
        self._url = ""
        self._remote: Backend = transport_for(Registry(), f"{scheme}:///never").connect(
            f"{scheme}:///never"
        )

    @property
    def info(self) -> ModelInfo:
        return self._remote.info

    async def start(self) -> None:
        self._url = self._host.new(self._scheme)
        self._remote = transport_for(Registry(), self._url).connect(self._url)
        try:
            await self._remote.start()
        except BaseException:
            await self.aclose()
            raise

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        return self._remote.generate(request)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        return await self._remote.embed(request)

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        return await self._remote.tokenize(prompt)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self._remote.detokenize(token_ids)

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        await self._remote.load_adapter(name, path, description)

    async def unload_adapter(self, name: str) -> None:
        await self._remote.unload_adapter(name)

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        return await self._remote.adapters()

    async def stats(self) -> BackendStats:
        return await self._remote.stats()

    async def aclose(self) -> None:
        await self._remote.aclose()
        url, self._url = self._url, ""
        if url:
            self._host.close(url)
