"""A transport: what crosses it arrives as an inline backend would give it, errors included."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from themis_core import errors as core
from themis_core.errors import BackendFailed, ThemisError, all_error_types
from themis_core.messages import (
    AdapterWeight,
    Delta,
    Done,
    EmbedRequest,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Started,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from themis_testkit.conformance.transport_ends import (
    Ends,
    TransportBase,
    TransportFactory,
    ask,
    events_of,
    scripted,
    take,
)
from themis_testkit.fakes.scripted import Step, say
from themis_testkit.strategies import event_streams, generate_requests

_LOGPROB = TokenLogprob(token_id=1, token=b"\xc3", logprob=-0.5, top=((2, b"x", -0.25),))
_CALL = ToolCallDelta(index=2, id="call", name="f", arguments="{}")


class CrossingChecks(TransportBase):
    """Events, requests, facts and errors."""

    def test_events_are_those_of_the_backend(self, transport_factory: TransportFactory) -> None:
        """Each event once, whole, in its place: whatever the backend says."""

        async def check(streams: list[list[GenerateEvent]]) -> None:
            by_prompt = {f"request {i}": stream for i, stream in enumerate(streams)}

            def script(request: GenerateRequest) -> list[GenerateEvent]:
                return by_prompt[str(request.prompt)]

            async with Ends(transport_factory, scripted(script)) as ends:
                client = await ends.client()
                answers = await asyncio.gather(
                    *(events_of(client, ask(i)) for i in range(len(streams)))
                )
                assert answers == streams

        @self.settings(self.examples // 3)
        @example([_EVERYTHING])
        @given(st.lists(event_streams(), min_size=1, max_size=4))
        def play(streams: list[list[GenerateEvent]]) -> None:
            self.run(check(streams))

        play()

    def test_requests_arrive_whole(self, transport_factory: TransportFactory) -> None:
        """The backend sees the request that was made, every field of it."""

        async def check(requests: list[GenerateRequest]) -> None:
            backend = scripted(say("x"))
            async with Ends(transport_factory, backend) as ends:
                client = await ends.client()
                for request in requests:
                    await events_of(client, request)
            assert backend.requests == requests

        # Without `timeout`: of that, the time on the way may be taken off.
        requests = generate_requests().map(lambda r: msgspec.structs.replace(r, timeout=None))

        @self.settings(self.examples // 3)
        @given(st.lists(requests, min_size=1, max_size=3))
        def play(requests: list[GenerateRequest]) -> None:
            self.run(check(requests))

        play()

    def test_a_long_answer(self, transport_factory: TransportFactory) -> None:
        """Hundreds of events, more than any window, and a piece of text of a megabyte."""
        long = say(*(f"piece {i} " for i in range(700)))
        big = say("0123456789abcdeé" * (1 << 16), "the end")

        async def check() -> None:
            def script(request: GenerateRequest) -> list[GenerateEvent]:
                return big if request.prompt == "request 1" else long

            async with Ends(transport_factory, scripted(script)) as ends:
                client = await ends.client()
                assert await events_of(client, ask(0)) == long
                assert await events_of(client, ask(1)) == big

        self.run(check())

    def test_the_timeout_is_kept(self, transport_factory: TransportFactory) -> None:
        """`GenerateRequest.timeout` reaches the backend; it can lose only the time on the way."""

        async def check() -> None:
            backend = scripted(say("x"))
            async with Ends(transport_factory, backend) as ends:
                await events_of(await ends.client(), ask(timeout=3600.0))
            (arrived,) = backend.requests
            assert arrived.timeout is not None
            assert 0 < arrived.timeout <= 3600.0

        self.run(check())

    def test_info_and_stats(self, transport_factory: TransportFactory) -> None:
        """They are those of the backend behind it."""

        async def check() -> None:
            backend = scripted(say("x", "y"))
            async with Ends(transport_factory, backend) as ends:
                client = await ends.client()
                await events_of(client, ask())
                assert client.info == backend.info
                assert await client.stats() == await backend.stats()
                assert await client.adapters() == ()

        self.run(check())

    def test_errors_are_whole(self, transport_factory: TransportFactory) -> None:
        """Each class of error arrives as itself: code, text, field, remedy, plugin, retryable."""
        # Not those that plugins or tests have added: the other end need not know them.
        kinds = [kind for kind in all_error_types() if kind.__module__ == core.__name__]
        texts = {"field": "sampling.n", "remedy": "Do this, é.", "plugin": "p"}
        errors = [kind(f"It is {kind.__name__}.", **texts) for kind in kinds]

        async def check() -> None:
            def script(request: GenerateRequest) -> list[Step]:
                number = int(str(request.prompt).split()[1])
                return [Started(prompt_tokens=1), Delta(text="a"), errors[number]]

            async with Ends(transport_factory, scripted(script)) as ends:
                client = await ends.client()
                for i, error in enumerate(errors):
                    async with aclosing(client.generate(ask(i))) as events:
                        with pytest.raises(ThemisError) as caught:
                            await take(events, 9)
                    assert type(caught.value) is type(error)
                    assert caught.value.to_dict() == error.to_dict()

        self.run(check())

    def test_what_comes_before_an_error_arrives(self, transport_factory: TransportFactory) -> None:
        """An error ends the stream; it does not swallow what was said before."""
        said: list[GenerateEvent] = [
            Started(prompt_tokens=1),
            Delta(text="a"),
            Delta(text="b"),
        ]

        async def check() -> None:
            backend = scripted([*said, BackendFailed("It broke.")])
            async with Ends(transport_factory, backend) as ends:
                events = (await ends.client()).generate(ask())
                assert await take(events, 3) == said
                with pytest.raises(BackendFailed):
                    await anext(events)

        self.run(check())

    def test_errors_of_other_calls(self, transport_factory: TransportFactory) -> None:
        """`embed`, `tokenize` and the rest raise what the backend raises."""

        async def check() -> None:
            backend = scripted()
            async with Ends(transport_factory, backend) as ends:
                client = await ends.client()
                for inline, far in (
                    (backend.embed(EmbedRequest(inputs=("a",))), client.embed(_EMBED)),
                    (backend.tokenize("a"), client.tokenize("a")),
                    (backend.detokenize((1,)), client.detokenize((1,))),
                    (backend.load_adapter("a", "b"), client.load_adapter("a", "b")),
                    (backend.unload_adapter("a"), client.unload_adapter("a")),
                ):
                    with pytest.raises(ThemisError) as expected:
                        await inline
                    with pytest.raises(ThemisError) as caught:
                        await far
                    assert caught.value.to_dict() == expected.value.to_dict()

        self.run(check())

    def test_a_defect_of_the_backend_is_an_error(self, transport_factory: TransportFactory) -> None:
        """What is no `ThemisError` becomes one: nobody waits for ever, and the next is served."""

        def script(request: GenerateRequest) -> list[GenerateEvent]:
            if request.prompt == "request 0":
                raise ZeroDivisionError("a defect")
            return say("fine")

        async def check() -> None:
            async with Ends(transport_factory, scripted(script)) as ends:
                client = await ends.client()
                with pytest.raises(ThemisError):
                    await events_of(client, ask(0))
                assert await events_of(client, ask(1)) == say("fine")

        self.run(check())


# Every field of every event has a value of its own; an empty delta is an event too.
_EVERYTHING: list[GenerateEvent] = [
    Started(prompt_tokens=7, cached_tokens=4, adapters=(AdapterWeight(name="a", weight=0.5),)),
    Delta(index=1, text="é", token_ids=(1, 2), logprobs=(_LOGPROB, _LOGPROB)),
    Delta(reasoning="hm", tool_calls=(_CALL,)),
    Delta(),
    Delta(index=1),
    Finished(index=1, reason="stop", matched="###"),
    Finished(reason="stop", matched=5),
    Done(usage=Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=4)),
]
_EMBED = EmbedRequest(inputs=("a",))
