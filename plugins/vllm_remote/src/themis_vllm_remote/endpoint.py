"""`Endpoint`: one of several servers, with what is known of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from themis_core.errors import (
    AdapterNotFound,
    BackendFailed,
    InvalidRequest,
    ModelLoadFailed,
    ThemisError,
)
from themis_vllm_remote.breaker import Breaker
from themis_vllm_remote.door import Door, Facts

_log = logging.getLogger("themis.vllm")


class Attempt:
    """One request at an endpoint."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self.answered = False

    def succeeded(self) -> None:
        """Something has come back."""
        self.answered = True
        self._breaker.succeeded()


class Endpoint:
    """`place` is its number. Without `facts`, it takes no requests yet."""

    def __init__(self, place: int, door: Door, breaker: Breaker) -> None:
        self.place = place
        self.door = door
        self.breaker = breaker
        self.ours = 0
        self.others = 0
        self.facts: Facts | None = None
        self._loading = asyncio.Lock()
        self._told: set[str] = set()  # Why it is left out, as far as the log says so.

    @property
    def load(self) -> int:
        """Requests there, of ours and of others."""
        return self.ours + self.others

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Around one request there: it counts, and the breaker hears how it went."""
        attempt, settled = Attempt(self.breaker), False
        self.breaker.begin()
        self.ours += 1
        try:
            yield attempt
        except AdapterNotFound:  # Whoever asked may know what to do about it.
            raise
        except BackendFailed:
            settled = True
            self.breaker.failed(asyncio.get_running_loop().time())
            raise
        except ThemisError:  # Of the request, or of a server that is alive and busy.
            settled = True
            self.breaker.succeeded()
            raise
        finally:
            self.ours -= 1
            if not (settled or attempt.answered):
                self.breaker.abandoned()

    async def join(self, equal: Facts, adapters: Mapping[str, str]) -> None:
        """Open it, unless it cannot be used: then nothing stays open, and the log says why.

        `adapters` are the paths by name; they may change meanwhile.
        """
        try:
            found = await self.door.open()
            try:
                check_equal(equal, found)
                await self._catch_up(adapters)
            except BaseException:
                await self.door.aclose()
                raise
        except ThemisError as error:
            self.left_out(error)
            raise
        self.facts = found
        self._told.clear()

    async def bring_adapter(self, name: str, path: str) -> None:
        """Load an adapter that the server has forgotten, once for all who ask for it."""
        async with self._loading:
            try:
                await self.door.load_adapter(name, path)
            except InvalidRequest as error:
                if error.field != "name":  # Else somebody was quicker, or the server kept it.
                    raise

    def left_out(self, error: ThemisError) -> None:
        """Say in the log why it takes no requests: each reason once."""
        if error.message not in self._told:
            self._told.add(error.message)
            _log.warning("%s is left out, and tried again later. %s", self.door.where, error)

    async def _catch_up(self, adapters: Mapping[str, str]) -> None:
        brought: set[str] = set()
        while missing := {n: path for n, path in adapters.items() if n not in brought}:
            for name, path in missing.items():
                await self.bring_adapter(name, path)
                brought.add(name)


def check_equal(one: Facts, other: Facts) -> None:
    """Raises `ModelLoadFailed` for servers of different models."""
    if (one.model, one.context) != (other.model, other.context):
        raise ModelLoadFailed(
            f"The endpoints serve different models: {one.model!r} with a context of {one.context}, "
            f"and {other.model!r} with {other.context}.",
            field="endpoint",
            remedy="Give each model a section of its own.",
            plugin="vllm",
        )
