"""A transport: the lives of servers and clients, URLs, and what is left behind."""

from __future__ import annotations

import asyncio

import pytest

from themis_core.contracts import Backend
from themis_core.errors import BackendClosed, ConfigInvalid, ModelLoadFailed, ThemisError
from themis_testkit.conformance.base import eventually
from themis_testkit.conformance.leftovers import assert_nothing_left, traces
from themis_testkit.conformance.transport_ends import (
    Condition,
    Ends,
    Gone,
    TransportBase,
    TransportFactory,
    ask,
    events_of,
    heard,
    held,
    said,
    scripted,
    take,
)
from themis_testkit.fakes.scripted import Hold, say


class ServerChecks(TransportBase):
    """Draining, closing, connecting."""

    def test_draining(self, transport_factory: TransportFactory) -> None:
        """`drain`: "Take no more clients and requests, and wait until those in flight are
        finished."."""

        async def check() -> None:
            hold = Hold()
            backend = scripted(held(hold))
            async with Ends(transport_factory, backend) as ends:
                client = await ends.client()
                running = asyncio.create_task(events_of(client, ask(0)))
                await hold.reached()
                draining = asyncio.create_task(ends.server.drain())
                await eventually(_refuses(client), what="a draining server refuses requests")
                late = ends.transport.connect(ends.server.url)
                with pytest.raises(ThemisError):
                    await _used(late)
                await late.aclose()
                assert not draining.done()
                hold.release()
                assert await running == said(held(hold))
                await draining
                assert backend.finished == ["r0"]

        self.run(check())

    def test_a_server_that_goes_fails_its_requests(
        self, transport_factory: TransportFactory
    ) -> None:
        """`BackendServer.aclose`: "cancel the requests of all clients; leaves the backend open"."""

        async def check() -> None:
            backend = scripted(held(Hold()))
            async with Ends(transport_factory, backend) as ends:
                clients = [await ends.client() for _ in range(2)]
                streams = [client.generate(ask(i)) for i, client in enumerate(clients)]
                for events in streams:
                    await take(events, 2)
                await ends.server.aclose()
                for events in streams:
                    with pytest.raises(Gone):
                        await anext(events)
                await eventually(heard(backend.cancelled, 2), what="both are cancelled")
                assert backend.info.backend == "scripted"
                assert backend.closes == 0
                with pytest.raises(Gone):
                    await events_of(clients[0], ask(7))

        self.run(check())

    def test_closing_twice(self, transport_factory: TransportFactory) -> None:
        """Servers, clients, and clients that never started."""

        async def check() -> None:
            async with Ends(transport_factory, scripted(say("x"))) as ends:
                client = await ends.client()
                unused = ends.transport.connect(ends.server.url)
                for _ in range(2):
                    await client.aclose()
                    await unused.aclose()
                for _ in range(2):
                    await ends.server.aclose()

        self.run(check())

    def test_a_url_is_served_once(self, transport_factory: TransportFactory) -> None:
        """`serve`: "Raises `ConfigInvalid` for a URL … that is in use"; the first goes on."""

        async def check() -> None:
            async with Ends(transport_factory, scripted(say("first"))) as ends:
                other = scripted(say("second"))
                await other.start()
                with pytest.raises(ConfigInvalid):
                    await ends.transport.serve(other, ends.server.url)
                assert await events_of(await ends.client(), ask()) == say("first")
                await ends.server.aclose()
                again = await ends.transport.serve(other, ends.server.url)
                client = ends.transport.connect(again.url)
                await client.start()
                assert await events_of(client, ask()) == say("second")
                await client.aclose()
                await again.aclose()
                await other.aclose()

        self.run(check())

    def test_nobody_there(self, transport_factory: TransportFactory) -> None:
        """`connect`: "Its `start` raises `ModelLoadFailed` if nobody answers there."."""

        async def check() -> None:
            transport, url = transport_factory()
            client = transport.connect(_with_port(url))
            with pytest.raises(ModelLoadFailed):
                await client.start()
            with pytest.raises(BackendClosed):
                _ = client.info
            await client.aclose()

        self.run(check())

    def test_a_client_before_its_start(self, transport_factory: TransportFactory) -> None:
        """`connect` does nothing yet: "the connection is made by its `start`"."""

        async def check() -> None:
            async with Ends(transport_factory, scripted(say("x"))) as ends:
                client: Backend = ends.transport.connect(ends.server.url)
                with pytest.raises(BackendClosed):
                    _ = client.info
                with pytest.raises(BackendClosed):
                    await events_of(client, ask())
                await client.start()
                assert isinstance(client, Backend)
                await client.aclose()

        self.run(check())

    def test_senseless_urls_are_refused(self, transport_factory: TransportFactory) -> None:
        """`serve` and `connect`: "`ConfigInvalid` for a URL it cannot use"."""

        async def check() -> None:
            transport, _ = transport_factory()
            backend = scripted()
            await backend.start()
            for url in ("", "nonsense", "no-such-scheme://somewhere/else"):
                with pytest.raises(ConfigInvalid):
                    transport.connect(url)
                with pytest.raises(ConfigInvalid):
                    await transport.serve(backend, url)
            await backend.aclose()

        self.run(check())

    def test_nothing_is_left(self, transport_factory: TransportFactory) -> None:
        """When server and client are closed, no task, thread, process or file of theirs is left."""

        async def use() -> None:
            async with Ends(transport_factory, scripted(held(Hold()))) as ends:
                await take((await ends.client()).generate(ask()), 2)

        async def check() -> None:
            await use()  # The first may start what a library keeps for the life of the process.
            tasks, before = asyncio.all_tasks(), traces()
            await use()
            await assert_nothing_left(before, tasks)

        self.run(check())


async def _used(client: Backend) -> None:
    await client.start()
    await events_of(client, ask(5))


def _refuses(client: Backend) -> Condition:
    async def refused() -> bool:
        events = client.generate(ask(8))
        try:
            async with asyncio.timeout(0.2):
                await anext(events)
        except (ThemisError, TimeoutError) as error:
            return isinstance(error, ThemisError)
        finally:
            await events.aclose()
        return False

    return refused


def _with_port(url: str) -> str:
    """A URL where nobody listens: port 0 is for listening only, so another stands there."""
    return url.replace(":0", ":9") if url.endswith(":0") else url
