"""`AdapterRegistry`: a name is forgotten when the adapter is gone, and not before."""

from __future__ import annotations

import asyncio

import pytest

from themis_core.errors import BackendFailed
from themis_engine.adapters import AdapterRegistry


class Host:
    """Unloads once it may; `fails` so often before that."""

    def __init__(self, fails: int = 0) -> None:
        self.fails = fails
        self.begun = asyncio.Event()
        self.may = asyncio.Event()
        self.loaded: list[str] = []

    async def load(self, name: str, path: str) -> None:
        self.loaded.append(name)

    async def unload(self, name: str) -> None:
        self.begun.set()
        await self.may.wait()
        if self.fails:
            self.fails -= 1
            raise BackendFailed("Not now.")
        self.loaded.remove(name)


def test_an_adapter_whose_unloading_fails_stays() -> None:
    async def main() -> None:
        host = Host(fails=1)
        host.may.set()
        registry = AdapterRegistry(host.load, host.unload)
        await registry.load("x", "/x", "an x")
        with pytest.raises(BackendFailed):
            await registry.unload("x")
        assert registry.names == ["x"]
        assert registry.descriptions == {"x": "an x"}
        await registry.unload("x")
        assert registry.names == host.loaded == []
        await registry.load("x", "/y")

    asyncio.run(main())


@pytest.mark.parametrize("fails", [0, 1])
def test_an_unloading_that_is_cancelled_once_begun_is_finished(fails: int) -> None:
    """Whether the name is there afterwards is whether the adapter is."""

    async def main() -> None:
        host = Host(fails)
        registry = AdapterRegistry(host.load, host.unload)
        await registry.load("x", "/x")
        unloading = asyncio.create_task(registry.unload("x"))
        await host.begun.wait()
        unloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unloading
        assert registry.names == []
        host.may.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others)
        assert registry.names == host.loaded == ["x"] * fails

    asyncio.run(main())
