"""`Endpoints`: one or several servers of the same model, as one door.

A request goes to the server that has its beginning cached, unless that is much busier than the
least busy one. One that brought nothing yet is tried again elsewhere; after its first token it is
not, since the answer could be another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from themis_core.errors import (
    AdapterNotFound,
    BackendFailed,
    Overloaded,
    ThemisError,
)
from themis_core.messages import ChatMessage, Tool
from themis_vllm_remote.affinity import Affinity
from themis_vllm_remote.breaker import Breaker
from themis_vllm_remote.door import Door, Embedded, Facts, Load, Order, Piece
from themis_vllm_remote.endpoint import Endpoint, check_equal

T = TypeVar("T")
_SLACK = 4  # So many requests more are worth a cached prefix.
_BACKOFF = 0.05  # Seconds before the first repetition; then ever twice that.


@dataclass(frozen=True)
class EndpointOptions:
    """`retries` of what brought nothing; when a breaker opens; how often loads are read."""

    retries: int = 2
    breaker_failures: int = 5
    breaker_pause: float = 10.0
    metrics_interval: float = 1.0


class Endpoints:
    """Doors that lead to equal servers."""

    def __init__(self, doors: Sequence[Door], options: EndpointOptions) -> None:
        self._options = options
        self._all = [
            Endpoint(i, door, Breaker(options.breaker_failures, options.breaker_pause))
            for i, door in enumerate(doors)
        ]
        self._affinity = Affinity()
        self._paths: dict[str, str] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._turn = 0

    @property
    def where(self) -> str:
        """All URLs."""
        return ", ".join(endpoint.door.where for endpoint in self._all)

    async def open(self) -> Facts:
        """Open all; those that cannot be opened yet are tried again later, if one could be.

        Raises `ModelLoadFailed` if none can be opened, or if they serve different models.
        """
        results = await asyncio.gather(
            *(endpoint.door.open() for endpoint in self._all), return_exceptions=True
        )
        failed: list[tuple[Endpoint, ThemisError]] = []
        for endpoint, result in zip(self._all, results, strict=True):
            if isinstance(result, Facts):
                endpoint.facts = result
            elif isinstance(result, ThemisError):
                failed.append((endpoint, result))
            else:
                raise result
        known = [endpoint.facts for endpoint in self._all if endpoint.facts is not None]
        if not known:
            assert isinstance(results[0], BaseException)
            raise results[0]
        for facts in known[1:]:
            check_equal(known[0], facts)
        for endpoint, error in failed:
            endpoint.left_out(error)
        if len(self._all) > 1:
            self._watches = [
                asyncio.create_task(self._watching(endpoint), name="themis vllm loads")
                for endpoint in self._all
            ]
        return known[0]

    async def generate(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """The pieces from one of the servers."""
        tried: list[int] = []
        reloaded: set[int] = set()
        while True:
            endpoint = self._choose(order.head, tried)
            try:
                with endpoint.attempt() as attempt:
                    async with aclosing(endpoint.door.generate(order)) as stream:
                        async for pieces in stream:
                            if not attempt.answered:
                                attempt.succeeded()
                                self._affinity.note(order.head, endpoint.place)
                            yield pieces
                return
            except (BackendFailed, Overloaded):
                if attempt.answered or len(tried) >= self._options.retries:
                    raise
            except AdapterNotFound:
                # The server was restarted, and has forgotten what was loaded here.
                name = order.adapter
                path = self._paths.get(name) if name else None
                if attempt.answered or endpoint.place in reloaded or not name or path is None:
                    raise
                reloaded.add(endpoint.place)
                endpoint.breaker.succeeded()
                await endpoint.bring_adapter(name, path)
                continue
            await _before_the_next(tried, endpoint)

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embedded:
        """From one of the servers."""
        return await self._once(lambda door: door.embed(inputs))

    async def encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """By one of the servers."""
        return await self._once(lambda door: door.encode(prompt, tools, options))

    async def decode(self, ids: Sequence[int]) -> str:
        """By one of the servers."""
        return await self._once(lambda door: door.decode(ids))

    async def load_adapter(self, name: str, path: str) -> None:
        """On all servers, or on none."""
        loaded: list[Endpoint] = []
        try:
            for endpoint in self._open():
                await endpoint.door.load_adapter(name, path)
                loaded.append(endpoint)
        except BaseException:
            for endpoint in loaded:
                with suppress(ThemisError):
                    await endpoint.door.unload_adapter(name)
            raise
        self._paths[name] = path

    async def unload_adapter(self, name: str) -> None:
        """On all servers. Where one fails, it stays known, and can be unloaded again."""
        errors: list[ThemisError] = []
        for endpoint in self._open():
            try:
                await endpoint.door.unload_adapter(name)
            except ThemisError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        self._paths.pop(name, None)

    async def back(self) -> None:
        """Wait until a server that has died can be asked again, where there is no other one."""
        if len(self._all) == 1:
            await self._all[0].door.back()
            self._all[0].breaker.succeeded()

    async def load(self) -> Load:
        """The sum over the servers."""
        loads = [await endpoint.door.load() for endpoint in self._open()]
        return Load(
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads),
            kv_usage=max(load.kv_usage for load in loads),
        )

    async def aclose(self) -> None:
        """Close all doors."""
        watches, self._watches = self._watches, []
        for watch in watches:
            watch.cancel()
        if watches:
            await asyncio.wait(watches)
        await asyncio.gather(*(endpoint.door.aclose() for endpoint in self._all))

    # --- inside ----------------------------------------------------------------------------------

    def _open(self) -> list[Endpoint]:
        return [endpoint for endpoint in self._all if endpoint.facts is not None]

    def _choose(self, head: Sequence[int], tried: Sequence[int]) -> Endpoint:
        """Raises `BackendFailed` if all servers are closed off."""
        now = asyncio.get_running_loop().time()
        allowed = [endpoint for endpoint in self._open() if endpoint.breaker.allows(now)]
        allowed = [endpoint for endpoint in allowed if endpoint.place not in tried] or allowed
        if not allowed:
            raise BackendFailed(
                f"vLLM at {self.where} has failed too often in a row, and is left alone now.",
                remedy="Look into the server's log; requests are let through again in "
                f"{self._options.breaker_pause:g} seconds.",
                plugin="vllm",
            )
        least = min(endpoint.load for endpoint in allowed)
        place = self._affinity.find(head) if len(allowed) > 1 else None
        near = next((endpoint for endpoint in allowed if endpoint.place == place), None)
        if near is not None and near.load <= least + max(_SLACK, least // 2):
            return near
        idle = [endpoint for endpoint in allowed if endpoint.load == least]
        self._turn += 1
        return idle[self._turn % len(idle)]

    async def _once(self, ask: Callable[[Door], Awaitable[T]]) -> T:
        """What asks for nothing that lasts, and may be asked again elsewhere."""
        tried: list[int] = []
        while True:
            endpoint = self._choose((), tried)
            try:
                with endpoint.attempt() as attempt:
                    result = await ask(endpoint.door)
                    attempt.succeeded()
                    return result
            except (BackendFailed, Overloaded):
                if len(tried) >= self._options.retries:
                    raise
            await _before_the_next(tried, endpoint)

    async def _watching(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(self._options.metrics_interval)
            await self._look(endpoint)

    async def _look(self, endpoint: Endpoint) -> None:
        """What the requests of others do there. One that does not tell is not thought idle."""
        try:
            if endpoint.facts is None:
                equal = next(e.facts for e in self._all if e.facts is not None)
                await endpoint.join(equal, self._paths)
            before = endpoint.ours
            load = await endpoint.door.load()
            endpoint.others = max(0, load.running + load.waiting - max(before, endpoint.ours))
        except ThemisError:
            return


async def _before_the_next(tried: list[int], endpoint: Endpoint) -> None:
    """Note who was tried, and give a server that is in trouble a moment."""
    tried.append(endpoint.place)
    await asyncio.sleep(_BACKOFF * 2 ** (len(tried) - 1))
