"""The scheduler under arbitrary arrivals and departures: every sequence gets its own tokens."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from themis_core.messages import GenerateRequest, SamplingParams
from themis_engine.crossing import EventStream
from themis_engine.scheduler import Scheduler
from themis_engine.sequence import Sequence
from themis_engine.text import TextStream
from themis_testkit.fakes.toy_runner import ToyRunner, greedy


def make(prompt: list[int], limit: int, arrival: int, priority: int) -> Sequence:
    return Sequence(
        request=GenerateRequest(
            prompt=tuple(prompt), sampling=SamplingParams(max_tokens=limit), priority=priority
        ),
        stream=EventStream(),
        prompt_length=len(prompt),
        tokens=list(prompt),
        limit=limit,
        seed=0,
        arrival=arrival,
        text=TextStream(),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Steps a scheduler with a strict runner; arrivals, departures and preemptions at will."""

    @initialize(
        slots=st.integers(1, 4),
        kv=st.integers(24, 60),
        max_batch=st.integers(4, 16),
        chunk=st.integers(1, 8),
    )
    def begin(self, slots: int, kv: int, max_batch: int, chunk: int) -> None:
        self.runner = ToyRunner(slots=slots, kv=kv, max_batch=max_batch)
        self.scheduler = Scheduler(self.runner.info, chunk)
        self.live: list[Sequence] = []
        self.arrivals = 0
        self.finished = 0

    @rule(
        prompt=st.lists(st.integers(1, 63), min_size=1, max_size=12),
        limit=st.integers(1, 12),
        priority=st.integers(0, 2),
    )
    def arrive(self, prompt: list[int], limit: int, priority: int) -> None:
        sequence = make(prompt, limit, self.arrivals, priority)
        self.arrivals += 1
        self.live.append(sequence)
        self.scheduler.add(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.live.remove(sequence)
        self.scheduler.remove(sequence)

    @rule()
    def step(self) -> None:
        step = self.scheduler.plan()
        self._free()
        if step is None:
            assert not self.live
            return
        logits = self.runner.forward(step.batch)
        self.scheduler.commit(step)
        for row, sequence in zip(logits, step.sampled, strict=True):
            sequence.tokens.append(int(row.argmax()))
            if sequence.generated == sequence.limit:
                prompt = sequence.tokens[: sequence.prompt_length]
                assert sequence.tokens[sequence.prompt_length :] == greedy(prompt, sequence.limit)
                self.live.remove(sequence)
                self.scheduler.remove(sequence)
                self.finished += 1
        self._free()

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert {id(s) for s in self.live} == {id(s) for s in [*running, *waiting]}
        assert len({s.slot for s in running}) == len(running)
        assert self.scheduler.kv_used <= self.runner.info.kv_capacity
        if not self.scheduler._evicted:
            assert self.scheduler.kv_used == sum(map(len, self.runner.kv.values()))

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            for _ in range(2000):
                if not self.live:
                    break
                self.step()
            assert not self.live, "some sequence starved"
            self._free()
            assert not any(self.runner.kv.values())

    def _free(self) -> None:
        for slot in self.scheduler.take_evicted():
            self.runner.free(slot)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_long_prompt_does_not_stop_decoding() -> None:
    runner = ToyRunner(kv=128, max_batch=32, context=128)
    scheduler = Scheduler(runner.info, prefill_chunk=4)
    short, long = make([1], 20, 0, 0), make([2] * 40, 4, 1, 0)
    scheduler.add(short)
    first = scheduler.plan()
    assert first is not None
    scheduler.commit(first)
    short.tokens.append(5)
    scheduler.add(long)
    for _ in range(10):
        step = scheduler.plan()
        assert step is not None
        assert {id(s): n for s, n in step.parts} == {id(short): 1, id(long): 4}
        scheduler.commit(step)
        short.tokens.append(5)


def test_higher_priority_goes_first() -> None:
    scheduler = Scheduler(ToyRunner(slots=1).info, prefill_chunk=8)
    low, high = make([1], 2, 0, 0), make([2], 2, 1, 5)
    scheduler.add(low)
    scheduler.add(high)
    step = scheduler.plan()
    assert step is not None
    assert step.sampled == [high]
