"""The LoRA adapters of one model: loaded and unloaded while it serves. Lives on the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from themis_core.errors import AdapterNotFound, InvalidRequest
from themis_core.messages import AdapterWeight

AdapterSet = tuple[AdapterWeight, ...]


@dataclass(slots=True)
class _Adapter:
    description: str
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class AdapterRegistry:
    """Which adapters there are, and how many requests use each.

    `load` and `unload` do the work on the engine's thread.
    """

    def __init__(
        self,
        load: Callable[[str, str], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
    ) -> None:
        self._load = load
        self._unload = unload
        self._adapters: dict[str, _Adapter] = {}
        self._busy: set[str] = set()  # Being loaded or unloaded.

    @property
    def names(self) -> list[str]:
        """Those that requests may name, sorted."""
        return sorted(self._adapters)

    @property
    def descriptions(self) -> dict[str, str]:
        """What each is for, where that was said."""
        return {n: a.description for n, a in sorted(self._adapters.items()) if a.description}

    def add(self, name: str, description: str) -> None:
        """An adapter was loaded with the model."""
        self._adapters[name] = _Adapter(description)

    async def load(self, name: str, path: str, description: str = "") -> None:
        """Make an adapter usable. Raises `InvalidRequest` if the name is taken."""
        if not name:
            raise InvalidRequest("An adapter needs a name.", field="name")
        if name in self._adapters or name in self._busy:
            raise InvalidRequest(
                f"An adapter {name!r} is loaded already.",
                field="name",
                remedy="Unload it first, or load the other one under a name of its own.",
            )
        self._busy.add(name)
        try:
            await self._load(name, path)
            self._adapters[name] = _Adapter(description)
        finally:
            self._busy.discard(name)

    async def unload(self, name: str) -> None:
        """Wait for those who use it, and forget it. New requests do not find it from now on.

        If this is cancelled while it waits, or fails, the adapter stays.
        """
        adapter = self._find(name)
        del self._adapters[name]
        self._busy.add(name)
        try:
            while adapter.users:
                adapter.idle.clear()
                await adapter.idle.wait()
        except BaseException:
            self._adapters[name] = adapter
            self._busy.discard(name)
            raise
        # Shielded: once it has begun, only its end says whether the adapter is still there.
        await asyncio.shield(asyncio.ensure_future(self._forget(name, adapter)))

    @contextmanager
    def lease(self, wanted: Sequence[AdapterWeight]) -> Iterator[AdapterSet]:
        """Use adapters within a block: sorted by name, without those of weight 0.

        Raises `AdapterNotFound`, and `InvalidRequest` for weights that are no numbers.
        """
        names = [adapter.name for adapter in wanted]
        for adapter in wanted:
            self._find(adapter.name)
            if names.count(adapter.name) > 1:
                raise InvalidRequest(f"Adapter {adapter.name!r} is named twice.", field="adapters")
            if not math.isfinite(adapter.weight):
                raise InvalidRequest(
                    f"The weight of adapter {adapter.name!r} is {adapter.weight}.", field="adapters"
                )
        used = tuple(sorted((a for a in wanted if a.weight), key=lambda a: a.name))
        leased = [self._adapters[adapter.name] for adapter in used]
        for one in leased:
            one.users += 1
        try:
            yield used
        finally:
            for one in leased:
                one.users -= 1
                if not one.users:
                    one.idle.set()

    async def _forget(self, name: str, adapter: _Adapter) -> None:
        try:
            await self._unload(name)
        except BaseException:
            self._adapters[name] = adapter
            raise
        finally:
            self._busy.discard(name)

    def _find(self, name: str) -> _Adapter:
        found = self._adapters.get(name)
        if found is None:
            known = ", ".join(map(repr, self.names)) or "none"
            raise AdapterNotFound(
                f"No adapter {name!r} is loaded.", field="adapters", remedy=f"Loaded are: {known}."
            )
        return found
