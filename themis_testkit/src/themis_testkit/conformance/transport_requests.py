"""A transport: requests that are cancelled, and many at once."""

from __future__ import annotations

import asyncio

import pytest

from themis_core.errors import BackendClosed
from themis_core.messages import GenerateEvent, GenerateRequest
from themis_testkit.conformance.base import eventually
from themis_testkit.conformance.transport_ends import (
    Ends,
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


class RequestChecks(TransportBase):
    """Cancelling, several clients, and readers of different speed."""

    def test_closing_the_generator_cancels(self, transport_factory: TransportFactory) -> None:
        """`generate`: "Closing the generator … stops the generation", at the other end as well."""

        async def check() -> None:
            hold = Hold()
            backend = scripted(held(hold))
            async with Ends(transport_factory, backend) as ends:
                client = await ends.client()
                events = client.generate(ask())
                await take(events, 2)
                await hold.reached()
                await events.aclose()
                await events.aclose()
                await eventually(heard(backend.cancelled), what="the backend hears of it")
                hold.release()
                assert await events_of(client, ask(1)) == said(held(hold))

        self.run(check())

    def test_cancelling_the_task_cancels(self, transport_factory: TransportFactory) -> None:
        """ "or cancelling the task that waits in it"."""

        async def check() -> None:
            hold = Hold()
            backend = scripted(held(hold))
            async with Ends(transport_factory, backend) as ends:
                client = await ends.client()
                task = asyncio.create_task(events_of(client, ask()))
                await hold.reached()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await eventually(heard(backend.cancelled), what="the backend hears of it")

        self.run(check())

    def test_closing_a_client_cancels_its_requests(
        self, transport_factory: TransportFactory
    ) -> None:
        """Its requests raise; "its `aclose` leaves the other end as it is", and other clients."""

        async def check() -> None:
            hold = Hold()
            backend = scripted(held(hold))
            async with Ends(transport_factory, backend) as ends:
                leaving, staying = await ends.client(), await ends.client()
                other = asyncio.create_task(events_of(staying, ask(1)))
                events = leaving.generate(ask(0))
                await take(events, 2)
                await eventually(heard(backend.requests, 2), what="both requests have begun")
                await leaving.aclose()
                await leaving.aclose()
                with pytest.raises(BackendClosed):
                    await anext(events)
                with pytest.raises(BackendClosed):
                    _ = leaving.info
                await eventually(heard(backend.cancelled), what="the backend hears of it")
                hold.release()
                assert await other == said(held(hold))
                assert backend.cancelled == ["r0"]
                assert backend.closes == 0

        self.run(check())

    def test_many_clients(self, transport_factory: TransportFactory) -> None:
        """`serve`: "any number of clients"; each request gets its own answer, all at once."""

        def answer(request: GenerateRequest) -> list[GenerateEvent]:
            return say(*(f"{request.prompt}: {i}" for i in range(20)))

        async def check() -> None:
            async with Ends(transport_factory, scripted(answer)) as ends:
                clients = [await ends.client() for _ in range(6)]
                numbers = range(48)
                answers = await asyncio.gather(
                    *(events_of(clients[n % len(clients)], ask(n)) for n in numbers)
                )
                assert answers == [answer(ask(n)) for n in numbers]

        self.run(check())

    def test_a_slow_reader_holds_up_nobody(self, transport_factory: TransportFactory) -> None:
        """Who takes one event and then pauses loses nothing, and delays no other request."""
        long = say(*(f"piece {i} " for i in range(300)))

        async def check() -> None:
            async with Ends(transport_factory, scripted(long)) as ends:
                client = await ends.client()
                slow = client.generate(ask(0))
                begun = await take(slow, 1)
                for n in range(1, 4):
                    assert await events_of(client, ask(n)) == long
                assert await events_of(await ends.client(), ask(9)) == long
                assert begun + [event async for event in slow] == long

        self.run(check())
