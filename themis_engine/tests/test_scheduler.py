"""Who computes what: chunks, priorities, tenants, adapter sets, and prompts that begin alike."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from themis_core.messages import AdapterWeight, GenerateRequest, SamplingParams
from themis_engine.crossing import EventStream
from themis_engine.kv import Copy, PrefixKey
from themis_engine.pace import PrefillPace
from themis_engine.scheduler import Scheduler, Step
from themis_engine.sequence import Group, Sequence
from themis_testkit.fakes.toy_runner import ToyRunner

_arrivals = itertools.count()


def make(
    prompt: list[int],
    limit: int = 4,
    *,
    priority: int = 0,
    tenant: str | None = None,
    adapter: str = "",
) -> Sequence:
    request = GenerateRequest(
        prompt=tuple(prompt),
        sampling=SamplingParams(max_tokens=limit),
        priority=priority,
        tenant=tenant,
    )
    return Sequence(
        group=Group(request=request, stream=EventStream(), submitted=0.0),
        index=0,
        tokens=list(prompt),
        prompt_length=len(prompt),
        limit=limit,
        seed=0,
        arrival=next(_arrivals),
        key=PrefixKey((AdapterWeight(name=adapter),) if adapter else (), (tenant,)),
    )


def plan(scheduler: Scheduler) -> Step:
    step = scheduler.plan()
    assert step is not None
    scheduler.commit(step)
    return step


def run(scheduler: Scheduler, steps: int = 1) -> list[dict[Sequence, int]]:
    """Compute steps; each sampled sequence gets a token. Tokens computed, by sequence, per step."""
    done = []
    for _ in range(steps):
        step = plan(scheduler)
        for part in step.parts:
            if part.first_row >= 0:
                part.sequence.tokens.append(5)
                if part.sequence.generated == part.sequence.limit:
                    scheduler.remove(part.sequence)
        done.append({part.sequence: part.count for part in step.parts})
    return done


def scheduler(chunk: int = 8, **runner: Any) -> Scheduler:
    return Scheduler(ToyRunner(**runner).info, PrefillPace(chunk))


def test_who_arrives_while_nobody_decodes_waits_for_a_chunk_only() -> None:
    s = scheduler(4, kv=128, max_batch=64, context=128)
    long, short = make([2] * 60, 1), make([1, 1, 1], 1)
    s.add(long)
    assert run(s) == [{long: 4}]
    s.add(short)
    assert run(s) == [{short: 3, long: 1}]


def test_a_long_prompt_does_not_stop_decoding() -> None:
    s = scheduler(4, kv=128, max_batch=32, context=128)
    short, long = make([1], 20), make([2] * 40)
    s.add(short)
    run(s)
    s.add(long)
    assert run(s, 8) == [{short: 1, long: 4}] * 8
    # What completes it may be twice a chunk.
    assert run(s) == [{short: 1, long: 8}]


def test_a_short_prompt_overtakes_a_long_one_but_does_not_stop_it() -> None:
    s = scheduler(8, kv=256, max_batch=16, context=128)
    talker, long, short = make([9], 50), make([2] * 100), make([1] * 6)
    s.add(talker)
    run(s)
    s.add(long)
    run(s)
    s.add(short)
    assert run(s) == [{talker: 1, long: 2, short: 6}]


def test_higher_priority_goes_first() -> None:
    s = scheduler(slots=1)
    low, high = make([1]), make([2], priority=5)
    s.add(low)
    s.add(high)
    assert run(s) == [{high: 1}]


def test_of_equal_priority_the_first_comes_first() -> None:
    s = scheduler(slots=1)
    sequences = [make([i], 1) for i in range(5)]
    for sequence in sequences:
        s.add(sequence)
    assert [list(step) for step in run(s, 5)] == [[sequence] for sequence in sequences]


def test_a_tenant_with_many_requests_does_not_crowd_out_another() -> None:
    s = scheduler(slots=2, kv=512)
    greedy = [make([1, i], 4, tenant="greedy") for i in range(10)]
    for sequence in greedy:
        s.add(sequence)
    run(s, 4)
    modest = make([2], 4, tenant="modest")
    s.add(modest)
    run(s, 5)
    # The next place that is free is the modest tenant's, though nine came before.
    assert modest in s.running or modest.generated == 4


def test_tenants_share_evenly() -> None:
    s = scheduler(slots=2, kv=512)
    for i in range(20):
        s.add(make([1, i], 4, tenant="a"))
        if i < 10:
            s.add(make([2, i], 4, tenant="b"))
    served = {"a": 0, "b": 0}
    for step in run(s, 40):
        for sequence, count in step.items():
            served[sequence.tenant] += count
    assert abs(served["a"] - served["b"]) <= 12


def test_a_tenant_cannot_save_up_a_claim_by_staying_away() -> None:
    s = scheduler(slots=1, kv=512)
    s.add(make([1], 1, tenant="early"))
    run(s)
    for i in range(30):
        s.add(make([1, i], 4, tenant="busy"))
    run(s, 40)
    for i in range(10):
        s.add(make([2, i], 4, tenant="early"))
    tenants = [next(iter(step)).tenant for step in run(s, 40)]
    assert 12 <= tenants.count("busy") <= 28


def test_adapter_sets_take_turns() -> None:
    s = scheduler(slots=6, kv=512, max_batch=32)
    sequences = [make([1, i], 9, adapter=name) for i, name in enumerate(["", "a", "b", "a", ""])]
    for sequence in sequences:
        s.add(sequence)
    steps = run(s, 12)
    for step in steps:
        assert len({sequence.adapters for sequence in step}) == 1
    turns = [next(iter(step)).adapters for step in steps]
    for window in zip(turns, turns[1:], turns[2:], strict=False):
        assert len(set(window)) == 3


def test_prompts_that_arrive_together_compute_their_common_beginning_once() -> None:
    s = scheduler(64, slots=32, kv=4096, max_batch=128, context=256, shares_kv=True)
    common = [7] * 100
    sequences = [make([*common, 1 + i % 5, i, i + 1]) for i in range(32)]
    for sequence in sequences:
        s.add(sequence)
    computed = 0
    while any(not sequence.decoding for sequence in sequences):
        step = plan(s)
        computed += sum(part.count for part in step.parts)
        for part in step.parts:
            if part.first_row >= 0:
                part.sequence.tokens.append(5)
                part.sequence.limit = 10**6
    assert s.reused >= 31 * 100
    # The prompts, the common part once, and what those who were ready decoded meanwhile.
    assert computed < 100 + 32 * 3 + 3 * 32


def test_a_prompt_does_not_wait_for_a_short_common_beginning() -> None:
    s = scheduler(64, slots=4, kv=512, max_batch=128)
    for i in range(3):
        s.add(make([7] * 10 + [i]))
    assert len(run(s)[0]) == 3


def test_others_pass_those_who_wait_for_a_prefix() -> None:
    s = scheduler(8, slots=4, kv=512, max_batch=16)
    first, second, other = make([7] * 60), make([7] * 60 + [1]), make([3, 4])
    for sequence in (first, second, other):
        s.add(sequence)
    assert set(run(s)[0]) == {first, other}


@pytest.mark.parametrize("shares", [True, False])
def test_a_finished_prompt_is_reused_and_the_least_recent_one_evicted(shares: bool) -> None:
    s = scheduler(64, slots=2, kv=64, max_batch=64, context=64, shares_kv=shares)
    for token in (1, 2):
        s.add(make([token] * 20, 2))
        run(s, 2)
    assert s.kv.used == 42
    s.kv.take_operations()
    # A third one evicts the first, which nobody has used since.
    s.add(make([3] * 20, 2))
    run(s, 2)
    again = make([2] * 20 + [9], 2)
    s.add(again)
    assert run(s) == [{again: 1}]


def test_a_running_sequence_is_copied_from_not_taken() -> None:
    s = scheduler(64, slots=3, kv=256, max_batch=64, context=64, shares_kv=True)
    first = make([1] * 20, 20)
    s.add(first)
    run(s, 3)
    s.kv.take_operations()
    second = make([1] * 20 + [2])
    s.add(second)
    assert run(s) == [{first: 1, second: 1}]
    assert s.kv.take_operations() == [Copy(first.slot, second.slot, 20)]


def test_other_tenants_and_adapters_share_nothing() -> None:
    s = scheduler(64, slots=8, kv=512, max_batch=128, shares_kv=True)
    s.add(make([1] * 20, 1, tenant="a"))
    run(s)
    for sequence in (make([1] * 20, tenant="b"), make([1] * 20, tenant="a", adapter="x")):
        s.add(sequence)
        assert run(s) == [{sequence: 20}]
        s.remove(sequence)
    assert s.reused == 0


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    s = scheduler(64, slots=4, kv=512, max_batch=128)
    for _ in range(2):
        s.add(make([1] * 20, 1))
        step = plan(s)
        s.remove(step.parts[0].sequence)
        assert step.parts[0].first_row == 0
    assert step.parts[0].count == 1


def test_a_model_that_cannot_be_cut_reuses_whole_sequences_only() -> None:
    s = scheduler(64, slots=4, kv=512, max_batch=128, truncates=False)
    s.add(make([1] * 20, 1))
    run(s)
    part_of_it, more_than_it = make([1] * 15), make([1] * 20 + [3])
    s.add(part_of_it)
    assert run(s) == [{part_of_it: 15}]
    s.remove(part_of_it)
    s.add(more_than_it)
    assert run(s) == [{more_than_it: 1}]
