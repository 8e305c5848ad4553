"""The engine under arbitrary arrivals, departures, evictions, preemptions and adapter changes.

Every finished answer must be what its request gives alone, and the books must agree with what the
model really holds. The runner is strict: it raises on every breach of the contract.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from themis_core.errors import BackendClosed, ThemisError
from themis_core.messages import AdapterWeight, GenerateRequest, SamplingParams
from themis_engine.crossing import Begun, Crossing, EventStream, Item, Tokens
from themis_engine.kv import PrefixKey
from themis_engine.kv.store import PrefixStore
from themis_engine.pace import PrefillPace
from themis_engine.sampler import choose
from themis_engine.scheduler import Scheduler
from themis_engine.sequence import Group, Sequence
from themis_engine.speculation import Speculation
from themis_engine.stepper import Stepper
from themis_testkit.fakes.toy_runner import ToyRunner, toy_logits

ADAPTERS = ("", "formal", "terse")


class Outbox(Crossing):
    """Keeps what would cross."""

    def __init__(self) -> None:
        self.items: dict[EventStream, list[Item]] = {}

    def post(self, stream: EventStream, item: Item) -> None:
        self.items.setdefault(stream, []).append(item)


class Oracle:
    """Guesses right, wrong, or not at all, as the test says."""

    cost = 0.0

    def __init__(self, machine: EngineMachine) -> None:
        self.machine = machine
        self.closed = False

    def propose(self, wanted: Any) -> None:
        for sequence, count in wanted.items():
            true = self.machine.answer(sequence)[sequence.generated :][:count]
            wrong = self.machine.guess
            sequence.drafts = [t if i != wrong else (t + 1) % 64 for i, t in enumerate(true)]

    def forget(self, sequence: Sequence) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class AlwaysSpeculation(Speculation):
    """Asks for a fixed number of guesses: what it is worth is tested elsewhere."""

    def depths(self, sequences: list[Sequence]) -> dict[Sequence, int]:
        return {s: max(0, min(3, s.limit - s.generated - 1)) for s in sequences}


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        shares=st.booleans(),
        truncates=st.booleans(),
        slots=st.integers(1, 6),
        kv=st.integers(50, 100),
        max_batch=st.integers(6, 16),
        chunk=st.integers(1, 8),
        parallel=st.integers(1, 6),
        keep=st.booleans(),
        store=st.booleans(),
        speculate=st.booleans(),
    )
    def begin(
        self,
        shares: bool,
        truncates: bool,
        slots: int,
        kv: int,
        max_batch: int,
        chunk: int,
        parallel: int,
        keep: bool,
        store: bool,
        speculate: bool,
    ) -> None:
        self.runner = ToyRunner(
            slots=slots, kv=kv, max_batch=max_batch, shares_kv=shares, truncates=truncates
        )
        for name in ADAPTERS[1:]:
            self.runner.load_adapter(name, name)
        self.outbox = Outbox()
        self.guess = 9
        self.keep = keep
        self.parallel = parallel
        self.stepper = Stepper(
            self.runner,
            self.outbox,
            Scheduler(self.runner.info, PrefillPace(chunk), parallel=parallel, keep=keep),
            AlwaysSpeculation(Oracle(self), 3) if speculate and truncates else None,
            PrefixStore("toy", ram_bytes=4000, folder=None, disk_bytes=0, truncates=truncates)
            if store and keep
            else None,
        )
        self.live: list[Group] = []
        self.arrivals = itertools.count()
        self.answers: dict[Sequence, list[int]] = {}

    @rule(
        prompt=st.lists(st.integers(1, 3), min_size=1, max_size=6),
        common=st.sampled_from([0, 12, 20, 34]),
        limit=st.integers(1, 8),
        priority=st.integers(0, 2),
        tenant=st.sampled_from([None, None, "a"]),
        adapter=st.sampled_from(ADAPTERS),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        seed=st.none() | st.integers(0, 3),
    )
    def arrive(
        self,
        prompt: list[int],
        common: int,
        limit: int,
        priority: int,
        tenant: str | None,
        adapter: str,
        n: int,
        seed: int | None,
    ) -> None:
        tokens = [7] * common + prompt
        heat = {"temperature": 0.0} if seed is None else {"seed": seed}
        request = GenerateRequest(
            prompt=tuple(tokens),
            sampling=SamplingParams(max_tokens=limit, n=n, **heat),
            priority=priority,
            tenant=tenant,
        )
        group = Group(request=request, stream=EventStream(), submitted=0.0)
        arrival = next(self.arrivals)
        adapters = (AdapterWeight(name=adapter),) if adapter else ()
        for index in range(n):
            sequence = Sequence(
                group=group,
                index=index,
                tokens=list(tokens),
                prompt_length=len(tokens),
                limit=limit,
                seed=(seed or 0) + 100 * index,
                arrival=arrival,
                key=PrefixKey(adapters, (tenant,) if self.keep else (arrival,)),
            )
            group.sequences.append(sequence)
        self.live.append(group)
        self.stepper.add(group)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self.live))
        self.live.remove(group)
        self.stepper.cancel(group)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end_by_text(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(self.live))
        sequence = data.draw(st.sampled_from(group.sequences))
        self.stepper.finish(sequence)
        if group.closed:
            self.live.remove(group)

    @rule(name=st.sampled_from(ADAPTERS[1:]))
    def change_adapter(self, name: str) -> None:
        """Another adapter under the same name: what the old one computed must not be used."""
        if any(s.adapters and s.adapters[0].name == name for g in self.live for s in g.sequences):
            return
        self.stepper.forget_adapter(name)
        self.runner.unload_adapter(name)
        self.runner.load_adapter(name, f"{name}{next(self.arrivals)}")

    @rule(guess=st.integers(0, 4))
    def guess_wrong_at(self, guess: int) -> None:
        self.guess = guess

    @rule(count=st.integers(1, 30))
    def run(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        self.stepper.step()
        for group in list(self.live):
            if group.closed:
                self.live.remove(group)
                self.check(group)

    def check(self, group: Group) -> None:
        items = self.outbox.items[group.stream]
        assert isinstance(items[0], Begun)
        assert not any(isinstance(item, ThemisError) for item in items), items
        for sequence in group.sequences:
            mine = [i for i in items if isinstance(i, Tokens) and i.index == sequence.index]
            sampled = [s.token for item in mine for s in item.sampled]
            assert sampled == self.answer(sequence)[: len(sampled)]
            if mine and mine[-1].ended is not None:
                assert len(sampled) == sequence.limit
                assert sequence.tokens[sequence.prompt_length :] == sampled

    def answer(self, sequence: Sequence) -> list[int]:
        """What the sequence gives alone, without any engine."""
        if sequence not in self.answers:
            history = sequence.tokens[: sequence.prompt_length]
            for _ in range(sequence.limit):
                row = toy_logits(history, adapters=self.runner.meaning(sequence.adapters))
                if sequence.sampling.greedy:
                    history.append(int(row.argmax()))
                else:
                    token = choose(row, sequence.sampling, sequence.seed, len(history))
                    history.append(token)
            self.answers[sequence] = history[sequence.prompt_length :]
        return self.answers[sequence]

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "stepper"):
            return
        scheduler = self.stepper.scheduler
        assert len(scheduler.running) <= self.parallel
        sequences = [s for g in self.live for s in g.sequences if not s.closed]
        known = [*scheduler.running, *scheduler.waiting]
        assert {id(s) for s in sequences} == {id(s) for s in known}
        assert len(known) == len(sequences)
        assert scheduler.kv.used == self.runner.used_cells()
        assert scheduler.kv.used <= self.runner.info.kv_capacity
        stats = self.stepper.stats()
        assert stats.running + stats.waiting == len(self.live)
        for sequence in scheduler.running:
            assert scheduler.kv.length(sequence.slot) == sequence.computed
            assert self.runner.kv[sequence.slot] == sequence.tokens[: sequence.computed]

    def teardown(self) -> None:
        if not hasattr(self, "stepper"):
            return
        for _ in range(3000):
            if not self.live:
                break
            self.step()
        assert not self.live, "some request starved"
        self.stepper.fail_all(BackendClosed("over"))
        self.stepper.give_up_prefixes()
        self.stepper.close()
        assert self.runner.used_cells() == 0


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
