"""The comparison: all servers up, measured in turn at each number of clients, round after round.

The servers that wait are idle. What the rest of the machine computes is recorded too, to prove it;
a measurement that it disturbed is repeated, whatever its result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

from benchmarks import traffic
from benchmarks.client import complete, drive, stream_completion
from benchmarks.loads import Load
from benchmarks.peers import Peer, Setup
from benchmarks.processes import cpu_seconds, machine_cpu_seconds, watch_memory
from benchmarks.running import Server, running

_WARM_UP_PROMPT = 64
_WARM_UP_TOKENS = 8
_REST_SECONDS = 0.5
_DISTURBED = 0.15  # Cores.
_PATIENCE = 60  # Rests.
_TRIES = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: a load, at these numbers of clients, so often."""

    load: Load
    clients: tuple[int, ...]
    rounds: int
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Measurement:
    """One server under one load. Times are in seconds, `ttft` and `tpot` one for each answer.

    `stopped` answers ended by themselves. `beside` counts the answers that other clients got in the
    same time, which are part of nothing else here but of the processor's time.
    """

    round: int
    server: str
    clients: int
    seconds: float
    tokens: int
    cached_tokens: int
    stopped: int
    beside: int
    ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    cpu_seconds: float
    client_cpu_seconds: float
    other_cpu_seconds: float
    peak_mib: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all clients."""
        return self.tokens / self.seconds

    @property
    def other_cores(self) -> float:
        """Cores that were busy with something else."""
        return self.other_cpu_seconds / self.seconds

    @property
    def disturbed(self) -> bool:
        """True if so much else ran that the figures say little."""
        return self.other_cores > _DISTURBED

    def as_json(self) -> dict[str, object]:
        """Rounded, so that the file stays small."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


async def measure(plan: Plan, setup: Setup, peers: Sequence[Peer], say: Say) -> list[Measurement]:
    """Run the whole plan. Each round starts the servers anew and takes them in another order."""
    found: list[Measurement] = []
    start = time.monotonic()
    for number in range(plan.rounds):
        turn = number % len(peers)
        order = [*peers[turn:], *peers[:turn]]
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(running(peer, setup)) for peer in order]
            for server in servers:
                await _warm_up(server, plan, number)
            for clients in plan.clients:
                for server in servers:
                    for attempt in range(1 if plan.quick else _TRIES):
                        await _quiet(plan)
                        result = await _measure_one(server, plan, clients, number, attempt)
                        elapsed = time.monotonic() - start
                        progress = f"{elapsed:4.0f} s  round {number + 1}/{plan.rounds}"
                        say(f"{progress}  {describe(result)}")
                        if not result.disturbed:
                            break
                    found.append(result)
    return found


def describe(m: Measurement) -> str:
    """A line about a measurement."""
    first = sorted(m.ttft)[len(m.ttft) // 2]
    disturbed = f"  DISTURBED: {m.other_cores:.2f} cores busy elsewhere" if m.disturbed else ""
    return (
        f"{m.server:<22} {m.clients:>3} clients  {m.tokens_per_second:6.1f} tokens/s  "
        f"TTFT {1000 * first:6.0f} ms  CPU {m.cpu_seconds:5.1f} of {m.seconds:5.1f} s{disturbed}"
    )


async def _warm_up(server: Server, plan: Plan, number: int) -> None:
    clients = min(4, max(plan.clients))
    plain = traffic.unique(
        clients + 1, _seed(number, 0), tokens=_WARM_UP_PROMPT, new=_WARM_UP_TOKENS
    )
    # Not streamed: there, every server says how many tokens it counted in the prompt.
    await complete(server.port, server.peer.fields, plain.asks[0])
    rest = traffic.Traffic(plain.asks[1:])
    await drive(server.port, server.peer.fields, rest, clients)
    # One request as they will come, so that a schema is known and a long prompt has been seen.
    sample = plan.load.make(1, _seed(number, 0, 1)).asks[0]
    await stream_completion(server.port, server.peer.fields, sample)


async def _quiet(plan: Plan) -> None:
    """Rest, and wait a while for other processes to leave the processor."""
    for _ in range(1 if plan.quick else _PATIENCE):
        before = machine_cpu_seconds()
        await asyncio.sleep(_REST_SECONDS)
        if machine_cpu_seconds() - before < _DISTURBED * _REST_SECONDS:
            return


async def _measure_one(
    server: Server, plan: Plan, clients: int, number: int, attempt: int
) -> Measurement:
    # New prompts each time: servers remember those that they have seen.
    count = plan.load.requests(clients, quick=plan.quick)
    asked = plan.load.make(count, _seed(number, clients, attempt))
    everything, ours, own = machine_cpu_seconds(), cpu_seconds(server.pid), time.process_time()
    async with watch_memory(server.pid) as peak:
        result = await drive(server.port, server.peer.fields, asked, clients)
    own = time.process_time() - own
    ours = cpu_seconds(server.pid) - ours
    return Measurement(
        round=number,
        server=server.peer.name,
        clients=clients,
        seconds=result.seconds,
        tokens=sum(answer.tokens for answer in result.answers),
        cached_tokens=sum(answer.cached_tokens for answer in result.answers),
        stopped=sum(answer.stopped for answer in result.answers),
        beside=result.beside,
        ttft=tuple(answer.ttft for answer in result.answers),
        tpot=tuple(answer.tpot for answer in result.answers),
        cpu_seconds=ours,
        client_cpu_seconds=own,
        other_cpu_seconds=max(0.0, machine_cpu_seconds() - everything - ours - own),
        peak_mib=peak.value,
    )


def _seed(number: int, clients: int, attempt: int = 0) -> int:
    return 100_000 * number + 10 * clients + attempt


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return value
