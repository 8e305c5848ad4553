"""Validators, quotas and caches as the runtime calls them: each call goes through its `Hook`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final

from themis_core.contracts import (
    CACHE_BUDGET,
    Budget,
    Cache,
    OutputCheck,
    Quota,
    Reservation,
    Validator,
)
from themis_core.errors import InternalError, ThemisError
from themis_core.messages import GenerateRequest, Usage
from themis_core.runtime.hooks import Hook

_log = logging.getLogger("themis.runtime")


class _Missing(Enum):
    VALUE = 0


_MISSING: Final = _Missing.VALUE  # In the place of an answer; plugins may return None by mistake.


class GuardedValidator:
    """A `Validator`. In open mode, what fails to judge a request or a text lets it pass."""

    def __init__(self, plugin: Validator, hook: Hook) -> None:
        self.plugin = plugin
        self.hook = hook

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        """Raises `RequestRejected`, and what `Hook.call` raises."""
        return await self.hook.call("check_input", self._checked(request), otherwise=request)

    async def _checked(self, request: GenerateRequest) -> GenerateRequest:
        checked = await self.plugin.check_input(request)
        if not isinstance(checked, GenerateRequest):
            raise TypeError(f"check_input returned {type(checked).__name__}, not GenerateRequest")
        return checked

    def check_output(self, request: GenerateRequest) -> OutputCheck | None:
        """Raises what `Hook.at_once` raises."""
        check = self.hook.at_once("check_output", None, self.plugin.check_output, request)
        return None if check is None else _GuardedCheck(check, self.hook)

    async def aclose(self) -> None:
        """Close the plugin."""
        await self.plugin.aclose()


class _GuardedCheck:
    """An `OutputCheck`. In open mode, when it fails, the text goes on without being judged."""

    def __init__(self, check: OutputCheck, hook: Hook) -> None:
        self._check = check
        self._hook = hook
        self._given = ""  # What the check has been given and has not returned; see `_changes`.
        self._changes = False
        self._failed = False

    def push(self, text: str) -> str:
        if self._failed:
            return text
        return self._sent(text, self._hook.at_once("check_output", _MISSING, self._push, text))

    def finish(self) -> str:
        if self._failed:
            return ""
        return self._sent("", self._hook.at_once("check_output", _MISSING, self._finish))

    def _push(self, text: str) -> str:
        return _text(self._check.push(text))

    def _finish(self) -> str:
        return _text(self._check.finish())

    def _sent(self, text: str, sent: str | _Missing) -> str:
        given = self._given + text
        if isinstance(sent, str):
            self._changes = self._changes or not given.startswith(sent)
            self._given = "" if self._changes else given[len(sent) :]
            return sent
        self._failed = True
        if self._changes:
            # Text would be lost or sent twice, and what was to be taken out would be sent.
            raise InternalError(
                f"{self._hook.name} failed, and it has changed the text: what it holds back is not "
                "known, so the text cannot go on without it.",
                plugin=self._hook.plugin,
            )
        return given


def _text(sent: object) -> str:
    if not isinstance(sent, str):
        raise TypeError(f"an output check returned {type(sent).__name__}, not str")
    return sent


class GuardedQuota:
    """A `Quota`. In open mode, a request that it cannot count is not counted."""

    def __init__(self, plugin: Quota, hook: Hook) -> None:
        self.plugin = plugin
        self.hook = hook

    async def reserve(self, request: GenerateRequest) -> Reservation:
        """Raises `QuotaExceeded`, and what `Hook.call` raises."""
        reserved = await self.hook.call("reserve", self._reserved(request), otherwise=_MISSING)
        return _Nothing() if reserved is _MISSING else _GuardedReservation(reserved, self.hook)

    async def _reserved(self, request: GenerateRequest) -> Reservation:
        reserved: object = await self.plugin.reserve(request)
        if not isinstance(reserved, Reservation):
            raise TypeError(f"reserve returned {type(reserved).__name__}, not a Reservation")
        return reserved

    async def aclose(self) -> None:
        """Close the plugin."""
        await self.plugin.aclose()


class _Nothing:
    """The reservation of a request that goes on without one."""

    async def settle(self, usage: Usage) -> None:
        pass

    async def release(self) -> None:
        pass


class _GuardedReservation:
    def __init__(self, reservation: Reservation, hook: Hook) -> None:
        self._reservation = reservation
        self._hook = hook

    async def settle(self, usage: Usage) -> None:
        await self._hook.call("settle", self._settled(usage), otherwise=None)

    async def release(self) -> None:
        """Never raises: the request has ended already, with something that says more."""
        try:
            await self._hook.call("release", self._released(), otherwise=None)
        except ThemisError as error:
            _log.error("A reservation could not be released: %s", error)

    # Coroutines of their own: a plugin may raise before it has given something to await.

    async def _settled(self, usage: Usage) -> None:
        await self._reservation.settle(usage)

    async def _released(self) -> None:
        await self._reservation.release()


class GuardedCache:
    """A `Cache`. In open mode, one that does not answer has nothing, and stores nothing."""

    def __init__(self, plugin: Cache, hook: Hook) -> None:
        self.plugin = plugin
        self.hook = hook

    async def get(self, key: bytes) -> bytes | None:
        """Raises what `Hook.call` raises."""
        return await self.hook.call("get", self._got(key), otherwise=None)

    async def put(self, key: bytes, value: bytes) -> None:
        """Raises what `Hook.call` raises."""
        await self.hook.call("put", self._put(key, value), otherwise=None)

    async def _got(self, key: bytes) -> bytes | None:
        value: object = await self.plugin.get(key)
        if not (value is None or isinstance(value, bytes)):
            raise TypeError(f"get returned {type(value).__name__}, not bytes or None")
        return value

    async def _put(self, key: bytes, value: bytes) -> None:
        await self.plugin.put(key, value)

    async def aclose(self) -> None:
        """Close the plugin."""
        await self.plugin.aclose()


Guard = GuardedValidator | GuardedQuota | GuardedCache


def guarded_validators(validators: Sequence[Validator]) -> list[Validator]:
    """Those that are not guarded yet, with the default budget."""
    return [
        v
        if isinstance(v, GuardedValidator)
        else GuardedValidator(v, Hook(f"validators.{i}", Budget(), type(v).__name__))
        for i, v in enumerate(validators)
    ]


def guarded_quota(quota: Quota | None) -> Quota | None:
    """The same for a quota, if there is one."""
    if quota is None or isinstance(quota, GuardedQuota):
        return quota
    return GuardedQuota(quota, Hook("quota", Budget(), type(quota).__name__))


def hooks_of(plugins: Iterable[object]) -> Iterator[Hook]:
    """The hooks of all that are guarded."""
    return (p.hook for p in plugins if isinstance(p, Guard))


def guarded_cache(cache: Cache, budget: Budget = CACHE_BUDGET) -> GuardedCache:
    """A cache, whose failure is a miss if nothing else is said."""
    return GuardedCache(cache, Hook("cache", budget, type(cache).__name__))
