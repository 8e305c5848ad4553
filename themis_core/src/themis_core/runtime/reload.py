"""A new configuration for a running runtime: new requests see it, old ones keep theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from themis_core.config import Config
from themis_core.contracts import Quota, Validator
from themis_core.errors import BackendClosed
from themis_core.runtime.closing import Part, close_at_once, close_in_order
from themis_core.runtime.models import ModelPool
from themis_core.runtime.router import Router

_log = logging.getLogger("themis.runtime")


class ReloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload did, as dotted keys. `restart` are changes that only a restart can make."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{what}: {', '.join(keys)}"
            for what, keys in (
                ("added", self.added),
                ("removed", self.removed),
                ("changed", self.changed),
                ("needs a restart", self.restart),
            )
            if keys
        ]
        return "; ".join(parts) or "nothing has changed"


class Parts:
    """What one configuration made. A request uses the same parts from its beginning to its end."""

    def __init__(
        self,
        router: Router,
        pool: ModelPool,
        validators: Sequence[Validator] = (),
        quota: Quota | None = None,
    ) -> None:
        self.router = router
        self.pool = pool
        self.validators = validators
        self.quota = quota
        self.users = 0

    def things(self) -> list[Any]:
        """Everything in it that must be closed one day."""
        quota = [] if self.quota is None else [self.quota]
        return [*self.pool.members(), *self.validators, *quota]

    async def close(self, kept: Sequence[Any] = ()) -> None:
        """Close all but what is in `kept`, even if something raises. Twice is fine."""
        models = [m for m in self.pool.members() if not _among(m, kept)]
        closing = [(f"model {m.name!r}", m.aclose) for m in models]
        parts: list[Part] = [("the models", partial(close_at_once, closing))]
        parts += [
            (f"validator {type(getattr(v, 'plugin', v)).__name__}", v.aclose)
            for v in self.validators
            if not _among(v, kept)
        ]
        if self.quota is not None and not _among(self.quota, kept):
            parts.append(("the quota", self.quota.aclose))
        await close_in_order(parts)


class Assembler(Protocol):
    """Makes the parts of a configuration, with those of the current one that stay as they are."""

    async def assemble(
        self, config: str | Path | Config | None, current: Parts
    ) -> tuple[Parts, ReloadReport]:
        """Raises `ConfigInvalid` or a plugin's error; then nothing new is left open."""
        ...

    def accepted(self) -> None:
        """The parts that were assembled last are the current ones now."""
        ...


class Changeover:
    """The current parts, and the older ones that requests are still using."""

    def __init__(self, parts: Parts) -> None:
        self.current = parts
        self._older: list[Parts] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._reloading = asyncio.Lock()
        self._coming: Parts | None = None

    @contextmanager
    def use(self) -> Iterator[Parts]:
        """The current parts, which stay open until this is left, whatever becomes current."""
        parts = self.current
        parts.users += 1
        try:
            yield parts
        finally:
            parts.users -= 1
            if parts.users == 0 and parts in self._older and not self._closed:
                self._retire(parts)

    async def reload(
        self, assembler: Assembler, config: str | Path | Config | None
    ) -> ReloadReport:
        """All or nothing: what raises leaves everything as it was.

        Raises `BackendClosed` if it is closed before, or meanwhile.
        """
        # Held while models load: a second reload must begin where the first one has ended.
        async with self._reloading:
            self._check_open()
            old = self.current
            new, report = await assembler.assemble(config, old)
            self._coming = new
            try:
                self._check_open()
                await new.pool.start()
                self._check_open()
            except BaseException as error:
                try:
                    await new.close(kept=old.things())
                except Exception as another:  # noqa: BLE001 - the first error says more.
                    error.add_note(f"Closing what was new failed too: {another!r}")
                raise
            finally:
                self._coming = None
            # No await from here on: no request sees one half.
            assembler.accepted()
            new.pool.adopt()
            self.current = new
            self._older.append(old)
            if not old.users:
                self._retire(old)
            return report

    def _check_open(self) -> None:
        if self._closed:
            raise BackendClosed("The runtime is closed.")

    def _retire(self, parts: Parts) -> None:
        """Close what only these parts still had."""
        self._older.remove(parts)
        kept = [thing for other in (self.current, *self._older) for thing in other.things()]
        task = asyncio.create_task(_close_quietly(parts, kept), name="themis close old parts")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close everything, old and new and what is just being made.

        Raises the first error at the end.
        """
        self._closed = True
        done: list[Any] = []
        closing: list[Part] = []
        coming = [] if self._coming is None else [self._coming]
        for parts in (self.current, *self._older, *coming):
            closing.append(("the runtime's parts", partial(parts.close, tuple(done))))
            done += parts.things()
        if len(closing) == 1:
            closing = [("the runtime", self.current.close)]
        closing += [("the old parts", self._closed_older), ("a reload", self._reload_ended)]
        await close_in_order(closing)

    async def _closed_older(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing)

    async def _reload_ended(self) -> None:
        async with self._reloading:  # It closes what it has made.
            pass


def _among(thing: Any, others: Sequence[Any]) -> bool:
    return any(thing is other for other in others)


async def _close_quietly(parts: Parts, kept: Sequence[Any]) -> None:
    try:
        await parts.close(kept)
    # Plugins' code, and nobody waits for it: the new configuration is in force.
    except Exception:  # noqa: BLE001
        _log.exception("Something of the old configuration could not be closed.")
