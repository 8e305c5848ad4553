"""Several servers: one that joins late, one that is restarted, and adapters on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from themis_core.contracts import Backend
from themis_core.errors import BackendFailed, ModelLoadFailed, Overloaded
from themis_core.messages import AdapterWeight, GenerateRequest, SamplingParams
from themis_testkit.conformance.base import complete, eventually
from themis_vllm_remote.door import Door, Facts, Load
from themis_vllm_remote.endpoints import EndpointOptions, Endpoints

from .conftest import Body, connected
from .test_vllm_http import asked
from .upstream import Upstream

Run = Callable[[Body], None]
SOON = {"start_timeout": 0.3, "metrics_interval": 0.02}


class LateDoor:
    """Opens as another model, until that is corrected; counts how often it is open."""

    def __init__(self, model: str, late: bool) -> None:
        self.where = model
        self.model = model
        self.late = late
        self.opened = 0
        self.is_open = 0
        self.most_open = 0

    async def open(self) -> Facts:
        self.opened += 1
        if self.late and self.opened == 1:
            raise ModelLoadFailed("Not yet.")
        self.is_open += 1
        self.most_open = max(self.most_open, self.is_open)
        return Facts(model=self.model, context=1)

    async def load(self) -> Load:
        return Load()

    async def aclose(self) -> None:
        self.is_open = max(0, self.is_open - 1)


@asynccontextmanager
async def another(**attributes: Any) -> AsyncIterator[Upstream]:
    upstream = Upstream()
    for name, value in attributes.items():
        setattr(upstream, name, value)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()


async def serves(backend: Backend, upstream: Upstream) -> None:
    """Wait until requests reach this one, too."""

    async def reached() -> bool:
        await complete(backend, asked())
        return bool(upstream.bodies)

    await eventually(reached, what="the late server takes requests")


def with_adapter(name: str) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=1, temperature=0.0)
    return GenerateRequest(prompt=(1,), adapters=(AdapterWeight(name=name),), sampling=sampling)


def test_a_late_server_that_is_refused_is_closed_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        first, late = LateDoor("a", late=False), LateDoor("b", late=True)
        options = EndpointOptions(metrics_interval=0.001)
        endpoints = Endpoints([cast(Door, first), cast(Door, late)], options)
        await endpoints.open()

        async def often() -> bool:
            return late.opened >= 5

        async def joined() -> bool:
            return late.is_open == 1 and late.opened == opened + 1

        await eventually(often, what="it is tried again")
        assert late.most_open == 1
        late.model, opened = "a", late.opened
        await eventually(joined, what="the corrected server joins")
        await endpoints.aclose()
        assert (first.is_open, late.is_open) == (0, 0)

    asyncio.run(main())
    told = [record.getMessage() for record in caplog.records if record.name == "themis.vllm"]
    assert [text.startswith("b is left out") for text in told] == [True, True]
    assert "Not yet" in told[0]
    assert "different models" in told[1]


def test_a_late_server_of_another_model_joins_once_it_is_corrected(
    with_upstream: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first name must not become the name that is asked for ever after."""

    async def refused() -> bool:
        return "different models" in caplog.text

    async def body(first: Upstream) -> None:
        other = another(model="other", healthy=False)
        async with other as late, connected(first, late, **SOON) as backend:
            late.healthy = True
            await eventually(refused, what="the other model is refused")
            late.model = first.model
            await serves(backend, late)

    with_upstream(body)


def test_a_late_server_that_has_the_adapter_still_joins(with_upstream: Run) -> None:
    async def body(first: Upstream) -> None:
        async with another(healthy=False) as late, connected(first, late, **SOON) as backend:
            await backend.load_adapter("a", "/a")
            late.adapters["a"] = "/a"
            late.healthy = True
            await serves(backend, late)

    with_upstream(body)


def test_adapters_loaded_while_a_late_server_joins_are_brought_there(with_upstream: Run) -> None:
    async def body(first: Upstream) -> None:
        async with another(healthy=False) as late, connected(first, late, **SOON) as backend:
            await backend.load_adapter("a", "/a")
            joining, go_on = asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                joining.set()
                await go_on.wait()

            late.on_load = hold
            late.healthy = True
            await joining.wait()
            await backend.load_adapter("b", "/b")
            go_on.set()
            await serves(backend, late)
            assert late.adapters == {"a": "/a", "b": "/b"}

    with_upstream(body)


def test_all_requests_at_a_restarted_server_get_their_adapter(with_upstream: Run) -> None:
    """They all find it missing, and one of them loads it."""

    async def body(upstream: Upstream) -> None:
        async with connected(upstream) as backend:
            await backend.load_adapter("x", "/x")
            upstream.adapters.clear()

            async def all_came() -> bool:
                return len(upstream.bodies) >= 4

            async def wait() -> None:
                await eventually(all_came, what="all requests have found it missing")

            upstream.on_load = wait
            await asyncio.gather(*(complete(backend, with_adapter("x")) for _ in range(4)))
            assert upstream.adapters == {"x": "/x"}

    with_upstream(body)


def test_an_adapter_that_several_restarted_servers_forgot(with_upstream: Run) -> None:
    async def body(first: Upstream) -> None:
        async with another() as second, connected(first, second) as backend:
            await backend.load_adapter("x", "/x")
            for upstream in (first, second):
                upstream.adapters.clear()
            for _ in range(4):
                await complete(backend, with_adapter("x"))
            assert first.adapters == second.adapters == {"x": "/x"}

    with_upstream(body)


@pytest.mark.parametrize("status", [500, 503])
def test_an_adapter_that_could_not_be_unloaded_is_unloaded_later(
    with_upstream: Run, status: int
) -> None:
    """Until then it can be used, also on the server that has unloaded it."""

    async def body(first: Upstream) -> None:
        async with another() as second, connected(first, second) as backend:
            await backend.load_adapter("x", "/x")
            first.unload_status = [status]
            with pytest.raises(Overloaded if status == 503 else BackendFailed):
                await backend.unload_adapter("x")
            assert (first.adapters, second.adapters) == ({"x": "/x"}, {})
            for _ in range(4):
                await complete(backend, with_adapter("x"))
            second.unload_status = [404]
            await backend.unload_adapter("x")
            assert await backend.adapters() == ()
            assert first.adapters == {}
            second.adapters.clear()
            await backend.load_adapter("x", "/y")
            assert first.adapters == second.adapters == {"x": "/y"}

    with_upstream(body)
