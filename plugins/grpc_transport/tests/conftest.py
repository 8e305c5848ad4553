"""A backend behind gRPC, both ends in one process and on one event loop; certificates."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest

from themis_core.contracts import Backend, BackendServer
from themis_grpc_transport.transport import GrpcTransport
from themis_testkit.certificates import Certificates, make_certificates

Serve = Callable[[Backend], Backend]


class Served:
    """Starts a backend, serves it, and is the client's view of it."""

    def __init__(self, inner: Backend, query: str) -> None:
        self._inner = inner
        self._query = query
        self._transport = GrpcTransport("grpc")
        self._server: BackendServer | None = None
        # Until the port is known: one that nothing was sent through, and says so.
        self._remote = self._transport.connect("grpc://127.0.0.1:1" + query)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._remote, name)

    async def start(self) -> None:
        try:
            await self._inner.start()
            self._server = await self._transport.serve(self._inner, "grpc://127.0.0.1:0")
            self._remote = self._transport.connect(self._server.url + self._query)
            await self._remote.start()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._remote.aclose()
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()
        await self._inner.aclose()


def served(inner: Backend, query: str) -> Backend:
    return cast(Backend, Served(inner, query))


@pytest.fixture(params=["", "?per_request=1"], ids=["worker", "inference"])
def query(request: pytest.FixtureRequest) -> str:
    """How the client asks: the worker protocol in one call, or a call for each request."""
    found: str = request.param
    return found


@pytest.fixture
def serve(query: str) -> Serve:
    return lambda inner: served(inner, query)


@pytest.fixture
def serve_worker() -> Serve:
    return lambda inner: served(inner, "")


@pytest.fixture
def serve_inference() -> Serve:
    return lambda inner: served(inner, "?per_request=1")


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A short path: a socket's name has room for about a hundred characters."""
    folder = Path(tempfile.mkdtemp(prefix="themis-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def polling() -> None:
    """gRPC has a thread for as long as anything of it is in memory, which Python's garbage
    collector decides. Here it is there from the beginning to the end.
    """

    async def begin() -> None:
        grpc.aio.init_grpc_aio()  # Asks for the event loop.

    asyncio.run(begin())


class TlsQueries:
    """What TLS adds to the URLs of both ends."""

    def __init__(self, made: Certificates) -> None:
        self.ca, self.server, self.client, self.stranger = made

    def of_server(self, *, mutual: bool = True) -> str:
        """The query of a server's URL."""
        ca = f"&ca={self.ca}" if mutual else ""
        return f"?certificate={self.server}&key={self.server.with_suffix('.key')}{ca}"

    def of_client(self, who: Path | None) -> str:
        """The query of a client's URL."""
        own = f"&certificate={who}&key={who.with_suffix('.key')}" if who else ""
        return f"?ca={self.ca}{own}"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> TlsQueries:
    return TlsQueries(make_certificates(tmp_path_factory.mktemp("tls")))
