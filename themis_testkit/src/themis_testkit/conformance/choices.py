"""Several choices of one request."""

from __future__ import annotations

from themis_core.contracts import Backend
from themis_core.messages import Delta, Done, Finished, Started
from themis_testkit.conformance.base import (
    ConformanceBase,
    begin,
    collect,
    complete,
    idle,
    need,
    on_backend,
)

_HOT = 2.0


class ChoiceChecks(ConformanceBase):
    """`SamplingParams.n`."""

    @on_backend
    async def test_events_of_several_choices(self, backend: Backend) -> None:
        """One `Started`, one `Finished` for each choice after its deltas, one `Done`."""
        need(backend, "sampling.n")
        events = await collect(backend, self.request(backend, n=3))
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Done)
        ended: list[int] = []
        for event in events[1:-1]:
            assert isinstance(event, Delta | Finished)
            assert event.index not in ended
            if isinstance(event, Finished):
                ended.append(event.index)
        assert sorted(ended) == [0, 1, 2]

    @on_backend
    async def test_the_first_choice_is_that_of_a_single_one(self, backend: Backend) -> None:
        """With a seed, the first choice does not depend on how many there are."""
        need(backend, "sampling.n", "sampling.seed", "sampling.temperature", "deterministic")
        single = await self.answer(backend, temperature=_HOT, seed=5)
        several = await complete(backend, self.request(backend, temperature=_HOT, seed=5, n=4))
        assert several.choices[0].token_ids == single.token_ids
        if not self.has_one_answer:
            assert len({choice.token_ids for choice in several.choices}) > 1

    @on_backend
    async def test_greedy_choices_are_equal(self, backend: Backend) -> None:
        """Without chance there is only one answer."""
        need(backend, "sampling.n", "sampling.temperature", "deterministic")
        alone = await self.answer(backend)
        answer = await complete(backend, self.request(backend, n=3))
        assert [c.token_ids for c in answer.choices] == [alone.token_ids] * 3
        assert [c.text for c in answer.choices] == [alone.text] * 3

    @on_backend
    async def test_usage_of_several_choices(self, backend: Backend) -> None:
        """The prompt counts once, and the tokens of all choices."""
        need(backend, "sampling.n")
        one = (await complete(backend, self.request(backend))).usage
        answer = await complete(backend, self.request(backend, n=3))
        assert answer.usage.prompt_tokens == one.prompt_tokens
        assert answer.usage.completion_tokens == sum(len(c.token_ids) for c in answer.choices)
        stats = await backend.stats()
        assert stats.requests == stats.finished == 2

    @on_backend
    async def test_cancelling_ends_all_choices(self, backend: Backend) -> None:
        """Closing the generator frees every choice."""
        need(backend, "sampling.n")
        events = await begin(backend, self.long_request(backend, n=3))
        await events.aclose()
        await idle(backend)
        assert (await backend.stats()).kv_used == 0
