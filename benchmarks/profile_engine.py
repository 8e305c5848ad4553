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
from benchmarks.peers import Load, themis_config
from themis_core import GenerateRequest, SamplingParams
from themis_engine import crossing, loop, sampler, scheduler, stepper

# In the order of a step. What is inside `step` and in no other part is events and text.
_PARTS: tuple[tuple[str, Any, str], ...] = (
    ("commands taken in", loop.EngineLoop, "_take_in"),
    ("step", stepper.Stepper, "step"),
    ("  plan", scheduler.Scheduler, "plan"),
    ("  forward", None, "forward"),
    ("  sampling", sampler.Sampler, "sample"),
    ("  text and events", stepper.Stepper, "_advance"),
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


async def profile(load: Load, prompts: Sequence[str], tokens: int) -> str:
    """A table of one closed load: all prompts at once, `tokens` new tokens each."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, _timed(watch):
        config = themis_config(load, Path(folder))
        async with themis_core.open(config) as runtime:
            await asyncio.gather(*(_drain(runtime, " warm up", 4) for _ in prompts))
            watch.clear()
            start, cpu = time.perf_counter(), time.thread_time()
            await asyncio.gather(*(_drain(runtime, prompt, tokens) for prompt in prompts))
            wall, loop_cpu = time.perf_counter() - start, time.thread_time() - cpu
    return _table(watch, len(prompts), tokens, wall, loop_cpu)


async def _drain(runtime: themis_core.Runtime, prompt: str, tokens: int) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    async for _ in runtime.generate(GenerateRequest(prompt=prompt, sampling=sampling)):
        pass


@contextmanager
def _timed(watch: Stopwatch) -> Iterator[None]:
    make = stepper.Stepper.__init__

    def init(self: stepper.Stepper, runner: Any, *args: Any, **kwargs: Any) -> None:
        runner.forward = watch.around("  forward", runner.forward)
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


def _table(watch: Stopwatch, clients: int, tokens: int, wall: float, loop_cpu: float) -> str:
    steps = watch.calls["  forward"]
    forward = watch.seconds["  forward"]
    lines = [
        f"{clients} sequences: {clients * tokens / wall:.1f} tokens/s, {steps} steps, "
        f"{1000 * wall / steps:.2f} ms a step, {100 * (1 - forward / wall):.1f} % of it outside "
        f"forward; event loop: {1000 * loop_cpu / steps:.2f} ms of CPU a step",
    ]
    for name, _, _ in _PARTS:
        seconds = watch.seconds[name]
        lines.append(f"  {name:<20} {1000 * seconds / steps:8.3f} ms {100 * seconds / wall:6.2f} %")
    return "\n".join(lines) + "\n"
