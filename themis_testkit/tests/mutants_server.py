"""`MemoryTransport`, with one fault each at the server or in the transport."""

from __future__ import annotations

import asyncio
from typing import Any

from themis_core.contracts import Backend
from themis_core.errors import ConfigInvalid
from themis_testkit import MemoryTransport
from themis_testkit.fakes.memory_transport import MemoryServer


class TwoServers(MemoryTransport):
    """a second server takes the URL over"""

    async def serve(self, backend: Backend, url: str) -> MemoryServer:
        self._servers.pop(url, None)
        return await super().serve(backend, url)


class AnyUrl(MemoryTransport):
    """URLs of other schemes are taken"""

    def connect(self, url: str) -> Backend:
        try:
            return super().connect(url)
        except ConfigInvalid:
            return super().connect("memory://instead")


class _FaultyServer(MemoryServer):
    pass


def at_server(server: type[MemoryServer]) -> type[MemoryTransport]:
    """A transport with a faulty server."""

    class Faulty(MemoryTransport):
        async def serve(self, backend: Backend, url: str) -> MemoryServer:
            await super().serve(backend, url)
            made = self._servers[url] = server(self, backend, url)
            return made

    Faulty.__name__, Faulty.__doc__ = server.__name__, server.__doc__
    return Faulty


class DrainsAtOnce(_FaultyServer):
    """drain does not wait for what is in flight"""

    async def drain(self) -> None:
        draining = asyncio.create_task(super().drain())
        await asyncio.sleep(0)
        draining.cancel()


class DrainTakesMore(_FaultyServer):
    """a draining server takes more requests"""

    async def drain(self) -> None:
        # Like the good one, without telling the sessions: they take whatever comes.
        while any(session.in_flight for session in self._sessions):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class DrainCancels(_FaultyServer):
    """drain cancels what is in flight"""

    async def drain(self) -> None:
        await self.aclose()


class ClosesBackend(_FaultyServer):
    """closing the server closes the backend"""

    async def aclose(self) -> None:
        await super().aclose()
        await self._backend.aclose()


class KeepsUrl(_FaultyServer):
    """the URL of a closed server stays taken"""

    async def aclose(self) -> None:
        await super().aclose()
        self._transport._servers[self._url] = self


class ClosesQuietly(_FaultyServer):
    """closing the server tells its clients nothing and cancels nothing"""

    async def aclose(self) -> None:
        self._transport.forget(self)


class ServerClosesOnce(_FaultyServer):
    """closing a server twice raises"""

    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise RuntimeError("it is closed")
        self.closed = True
        await super().aclose()


class OneClient(_FaultyServer):
    """a new client throws the one before out"""

    def accept(self, connection: Any) -> None:
        for session in list(self._sessions):
            session._connection.abort("another client has come")
        super().accept(connection)


MUTANTS: tuple[type[MemoryTransport], ...] = (
    TwoServers,
    AnyUrl,
    *(
        at_server(server)
        for server in (
            DrainsAtOnce,
            DrainTakesMore,
            DrainCancels,
            ClosesBackend,
            KeepsUrl,
            ClosesQuietly,
            ServerClosesOnce,
            OneClient,
        )
    ),
)
