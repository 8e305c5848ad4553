"""What the kits of cache, quota, validator and transport share: running a check, and cancelling."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import Phase, settings

from themis_testkit.conformance.leftovers import assert_nothing_left, traces

T = TypeVar("T")


class KitBase:
    """`deadline` is the seconds after which a check has failed."""

    deadline: ClassVar[float] = 30.0

    examples: ClassVar[int] = 60
    """How many examples Hypothesis tries, in the checks that use it."""

    shrinks: ClassVar[bool] = True
    """True if Hypothesis looks for a smaller example when one has failed, which can take long."""

    cancel_steps: ClassVar[int] = 6
    """A call is cancelled after 0, 1, … so many turns of the event loop."""

    def settings(self, examples: int) -> settings:
        """How Hypothesis runs: the same examples each time, and nothing is written to disk."""
        phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if self.shrinks else [])]
        return settings(
            max_examples=examples, phases=phases, deadline=None, database=None, derandomize=True
        )

    def make(self, factory: Callable[..., Any]) -> Any:
        """A new plugin object. A suite whose factory takes arguments gives them here."""
        return factory()


def on(fixture: str) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Make a pytest function of a coroutine `check(self, made, …)`.

    `made` is a new object of the factory that the fixture of this name gives, closed afterwards.
    """

    def decorate(check: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        def run(self: KitBase, **fixtures: Any) -> None:
            factory = fixtures.pop(fixture)

            async def main() -> None:
                async with asyncio.timeout(self.deadline):
                    made = self.make(factory)
                    try:
                        await check(self, made, **fixtures)
                    finally:
                        await made.aclose()

            asyncio.run(main())

        signature = inspect.signature(check)
        own, made, *others = signature.parameters.values()
        named = made.replace(name=fixture)
        # Not `functools.wraps`: pytest would look through it, and miss the fixture.
        run.__name__, run.__doc__, run.__module__ = check.__name__, check.__doc__, check.__module__
        run.__signature__ = signature.replace(parameters=[own, named, *others])  # type: ignore[attr-defined]
        return run

    return decorate


def declared(value: T | None, what: str) -> T:
    """The value of a declaration; without it, the check is skipped and says so."""
    if value is None:
        pytest.skip(f"{what} is not declared")
    return value


async def cancelled_after(turns: int, work: Coroutine[Any, Any, T]) -> T | None:
    """Run `work` for some turns of the event loop, then cancel it.

    Gives its result if it was finished before, or did not let itself be cancelled; else None.
    What it raises is raised.
    """
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


async def assert_closes_clean(
    make: Callable[[], Any], work: Callable[[Any], Awaitable[None]]
) -> None:
    """Closing works unused, used, and twice; and leaves no task, thread, process or file."""
    unused = make()
    await unused.aclose()
    await unused.aclose()
    warm = make()  # The first may start what a library keeps for the life of the process.
    await work(warm)
    await warm.aclose()
    tasks, before = asyncio.all_tasks(), traces()
    used = make()
    await work(used)
    await used.aclose()
    await used.aclose()
    await assert_nothing_left(before, tasks)
