"""Hooks: calls of validators, quotas and caches, with a budget, a failure mode and a histogram.

A call that waits longer than its budget is cancelled. Two things cannot be cut: a plugin that goes
on although it is cancelled, and one that keeps the event loop busy. An answer that is there is
used, however late it comes; its lateness is counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import msgspec

from themis_core.contracts import Budget
from themis_core.errors import (
    AdapterNotFound,
    HookTimeout,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    QuotaExceeded,
    RequestRejected,
    RequestTooLarge,
    ThemisError,
    UnsupportedField,
)
from themis_core.messages import Histogram

T = TypeVar("T")
D = TypeVar("D")

_log = logging.getLogger("themis.runtime")

# Seconds. Most hooks compute for microseconds or ask a server nearby.
_BOUNDS = (0.00001, 0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# What says something about the request is the plugin's answer to it, whatever the failure mode.
_ANSWERS: Final = (
    RequestRejected,
    QuotaExceeded,
    InvalidRequest,
    UnsupportedField,
    PromptTooLong,
    RequestTooLarge,
    ModelNotFound,
    AdapterNotFound,
)


class HookStats(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one kind of one hook, since it was made.

    `hook` is its place in the configuration (`quota`, `validators.<name>`), `call` the method;
    making, pushing to and finishing an output check are all `check_output`. `seconds` has every
    call, `timeouts` counts those over their budget, `failures` those that raised something else
    than an answer.
    """

    hook: str
    call: str
    seconds: Histogram = Histogram()
    timeouts: int = 0
    failures: int = 0


class Hook:
    """The calls of one plugin. The budget may be changed at any time; later calls have it."""

    def __init__(self, name: str, budget: Budget, plugin: str | None = None) -> None:
        self.name = name
        self.budget = budget
        self.plugin = plugin
        self._counts: dict[str, _Count] = {}

    async def call(self, call: str, work: Awaitable[T], *, otherwise: D) -> T | D:
        """Await `work`, a call of the plugin. In open mode a failure gives `otherwise`.

        Raises the plugin's answers; in closed mode also `HookTimeout`, errors of Themis as they
        are, and `InternalError` for whatever else it raised.
        """
        count = self._count(call)
        begun = time.perf_counter()
        scope = asyncio.timeout(self.budget.timeout)
        try:
            async with scope:
                return await work
        except _ANSWERS:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this request: something that the plugin waits for was.
            return self._failed(call, error, late=False, otherwise=otherwise)
        except Exception as error:  # noqa: BLE001 - a plugin's code, which may raise anything.
            return self._failed(call, error, late=scope.expired(), otherwise=otherwise)
        finally:
            took = time.perf_counter() - begun
            # One that kept the loop busy and came back has not given its timeout a chance.
            count.add(took, late=scope.expired() or took > self.budget.timeout)

    def at_once(self, call: str, otherwise: D, work: Callable[..., T], *arguments: object) -> T | D:
        """The same for a synchronous call, which cannot be cut: it is only measured."""
        begun = time.perf_counter()
        try:
            return work(*arguments)
        except _ANSWERS:
            raise
        except Exception as error:  # noqa: BLE001 - a plugin's code, which may raise anything.
            return self._failed(call, error, late=False, otherwise=otherwise)
        finally:
            took = time.perf_counter() - begun
            self._count(call).add(took, late=took > self.budget.timeout)

    def stats(self) -> list[HookStats]:
        """One for each kind of call that was made."""
        return [count.snapshot(self.name, call) for call, count in self._counts.items()]

    def _count(self, call: str) -> _Count:
        if call not in self._counts:
            self._counts[call] = _Count()
        return self._counts[call]

    def _failed(self, call: str, error: BaseException, *, late: bool, otherwise: D) -> D:
        told = f"{self.name} ({call})"
        if late:
            message = f"{told} did not answer within {self.budget.timeout:g} seconds."
        else:
            self._count(call).failures += 1
            message = f"{told} failed; the log says why."
        passed = self.budget.on_failure == "open"
        _log.warning(
            "%s %s",
            message,
            "The request goes on without it." if passed else "The request fails.",
            exc_info=None if late else error,
        )
        if passed:
            return otherwise
        if late:
            raise HookTimeout(message, plugin=self.plugin) from error
        if isinstance(error, ThemisError):
            raise error
        raise InternalError(message, plugin=self.plugin) from error


class _Count:
    """One kind of call."""

    def __init__(self) -> None:
        self.timeouts = self.failures = 0
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: float, *, late: bool) -> None:
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._total += seconds
        self.timeouts += late

    def snapshot(self, hook: str, call: str) -> HookStats:
        seconds = Histogram(bounds=_BOUNDS, counts=tuple(self._counts), total=self._total)
        return HookStats(
            hook=hook, call=call, seconds=seconds, timeouts=self.timeouts, failures=self.failures
        )


def stats_of(hooks: Iterable[Hook]) -> tuple[HookStats, ...]:
    """The figures of several hooks."""
    return tuple(found for hook in hooks for found in hook.stats())
