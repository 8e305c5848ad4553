"""A backend behind a transport, both ends in one process and on one event loop."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import pytest

from themis_core.contracts import Backend, BackendServer
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
from themis_core.protocol import RemoteBackend
from themis_shm_transport.transport import SocketTransport

Serve = Callable[[Backend], Backend]


class Served:
    """Starts a backend, serves it, and is the client's view of it."""

    def __init__(self, inner: Backend, transport: SocketTransport, url: str) -> None:
        self.inner = inner
        self.remote: RemoteBackend = transport.connect(url)
        self.server: BackendServer | None = None
        self._transport = transport
        self._url = url

    @property
    def info(self) -> ModelInfo:
        return self.remote.info

    async def start(self) -> None:
        try:
            await self.inner.start()
            self.server = await self._transport.serve(self.inner, self._url)
            await self.remote.start()
        except BaseException:
            await self.aclose()
            raise

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        return self.remote.generate(request)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        return await self.remote.embed(request)

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        return await self.remote.tokenize(prompt)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        return await self.remote.detokenize(token_ids)

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        await self.remote.load_adapter(name, path, description)

    async def unload_adapter(self, name: str) -> None:
        await self.remote.unload_adapter(name)

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        return await self.remote.adapters()

    async def stats(self) -> BackendStats:
        return await self.remote.stats()

    async def aclose(self) -> None:
        await self.remote.aclose()
        server, self.server = self.server, None
        if server is not None:
            await server.aclose()
        await self.inner.aclose()


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A short path: a socket's name has room for about a hundred characters."""
    folder = Path(tempfile.mkdtemp(prefix="themis-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["unix", "shm"])
def scheme(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def serve(scheme: str, socket_folder: Path) -> Serve:
    numbers = itertools.count()

    def make(inner: Backend) -> Backend:
        url = f"{scheme}://{socket_folder}/{next(numbers)}.sock"
        return Served(inner, SocketTransport(scheme), url)

    return make
