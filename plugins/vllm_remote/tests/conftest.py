"""Running a test in an event loop with a server that speaks as vLLM does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from themis_core.contracts import Backend
from themis_vllm_remote.create import remote
from themis_vllm_remote.settings import VllmSettings

from .upstream import Upstream

Body = Callable[[Upstream], Awaitable[None]]

# Real vLLM is in an environment of its own, of the nox session `vllm`, which sets this.
collect_ignore = [] if os.environ.get("THEMIS_VLLM") == "1" else ["real"]


@pytest.fixture
def with_upstream() -> Callable[[Body], None]:
    """Run a coroutine function with a started `Upstream`."""

    def run(body: Body) -> None:
        async def main() -> None:
            async with asyncio.timeout(60):
                upstream = Upstream()
                await upstream.start()
                try:
                    await body(upstream)
                finally:
                    await upstream.stop()

        asyncio.run(main())

    return run


@asynccontextmanager
async def connected(*upstreams: Upstream, **settings: Any) -> AsyncIterator[Backend]:
    """A started backend on these servers; its settings are impatient."""
    given: dict[str, Any] = {"start_timeout": 2.0, "breaker_pause": 0.2} | settings
    urls = [upstream.url for upstream in upstreams]
    backend = remote(VllmSettings(endpoint=urls if len(urls) > 1 else urls[0], **given))
    await backend.start()
    try:
        yield backend
    finally:
        await backend.aclose()
