"""Where the time of an engine step goes: the model, or what the engine does around it.

Runs the real runtime and engine on the benchmark's model in this process, without HTTP, with
timers around the parts of a step. All times are wall times of the engine's thread, so waiting for
Python's lock while the event loop works counts where it happens.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import themis_core
from benchmarks.machine import commit, machine
from benchmarks.peers import Setup, themis_config
from benchmarks.vocabulary import prompts
from themis_core import GenerateRequest, SamplingParams
from themis_engine import crossing, loop, sampler, scheduler, stepper

_PROMPT_TOKENS = 64
_FORWARD = "  forward"
# In the order of a step; what is indented happens within what stands above it with less.
_PARTS: tuple[tuple[str, Any, str], ...] = (
    ("commands taken in", loop.EngineLoop, "_take_in"),
    ("step", stepper.Stepper, "step"),
    ("  plan", scheduler.Scheduler, "plan"),
    ("  KV operations", stepper.Stepper, "apply"),
    (_FORWARD, None, "forward"),
    ("  rows", sampler.Sampler, "rows"),
    ("  tokens", stepper.Stepper, "_advance"),
    ("    sampling", sampler.Rows, "sample"),
    ("handing over", crossing.Crossing, "flush"),
)


class Stopwatch:
    """Seconds and calls by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self.calls[name] += 1

        return timed

    def clear(self) -> None:
        """Forget what was measured."""
        self.seconds.clear()
        self.calls.clear()


async def document(setup: Setup, clients: Sequence[int], tokens: int) -> dict[str, Any]:
    """A closed load for each number of clients: all prompts at once, `tokens` new tokens each."""
    cases = [await _profile(setup, prompts(n, _PROMPT_TOKENS, seed=n), tokens) for n in clients]
    return {
        "name": "profile",
        "commit": commit(),
        "machine": machine(),
        "model": setup.model.name,
        "threads": setup.threads,
        "new_tokens": tokens,
        "cases": cases,
    }


async def _profile(setup: Setup, texts: Sequence[str], tokens: int) -> dict[str, Any]:
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, _timed(watch):
        config = themis_config(setup, Path(folder))
        async with themis_core.open(config) as runtime:
            await asyncio.gather(*(_drain(runtime, " warm up", 4) for _ in texts))
            watch.clear()
            start, cpu = time.perf_counter(), time.thread_time()
            await asyncio.gather(*(_drain(runtime, text, tokens) for text in texts))
            wall, loop_cpu = time.perf_counter() - start, time.thread_time() - cpu
    return _case(watch, len(texts), tokens, wall, loop_cpu)


async def _drain(runtime: themis_core.Runtime, prompt: str, tokens: int) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    async for _ in runtime.generate(GenerateRequest(prompt=prompt, sampling=sampling)):
        pass


@contextmanager
def _timed(watch: Stopwatch) -> Iterator[None]:
    make = stepper.Stepper.__init__

    def init(self: stepper.Stepper, runner: Any, *args: Any, **kwargs: Any) -> None:
        runner.forward = watch.around(_FORWARD, runner.forward)
        make(self, runner, *args, **kwargs)

    with mock.patch.object(stepper.Stepper, "__init__", init):
        patches = [
            mock.patch.object(owner, method, watch.around(name, getattr(owner, method)))
            for name, owner, method in _PARTS
            if owner is not None
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def _case(
    watch: Stopwatch, sequences: int, tokens: int, wall: float, loop_cpu: float
) -> dict[str, Any]:
    """Figures of one load; `outside_percent` is all wall time but that of `forward`."""
    steps = watch.calls[_FORWARD]
    parts = {
        name: {
            "ms": round(1000 * watch.seconds[name] / steps, 4),
            "percent": round(100 * watch.seconds[name] / wall, 3),
        }
        for name, _, _ in _PARTS
    }
    return {
        "sequences": sequences,
        "tokens_per_second": round(sequences * tokens / wall, 1),
        "steps": steps,
        "step_ms": round(1000 * wall / steps, 3),
        "outside_percent": round(100 * (1 - watch.seconds[_FORWARD] / wall), 2),
        "event_loop_cpu_ms": round(1000 * loop_cpu / steps, 3),
        "parts": parts,
    }
