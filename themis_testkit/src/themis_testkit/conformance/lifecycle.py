"""Starting and closing."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing

import pytest

from themis_core.contracts import Backend
from themis_core.errors import BackendClosed, ModelFileInvalid, ModelLoadFailed, ThemisError
from themis_core.messages import Delta, GenerateRequest, SamplingParams
from themis_testkit.conformance.base import (
    BackendFactory,
    ConformanceBase,
    begin,
    complete,
    idle,
    on_backend,
)
from themis_testkit.conformance.leftovers import assert_all_closed, own_threads, traces


class LifecycleChecks(ConformanceBase):
    """`start`, `info`, `aclose`, and what is left behind."""

    @on_backend
    async def test_it_is_a_backend(self, backend: Backend) -> None:
        """Every method of the contract is there."""
        assert isinstance(backend, Backend)

    def test_before_start_everything_raises_closed(self, backend_factory: BackendFactory) -> None:
        """`info`: "Raises `BackendClosed` before `start`"; so does what needs the model."""
        backend = backend_factory()
        with pytest.raises(BackendClosed):
            _ = backend.info
        asyncio.run(self._refuses_work(backend))

    def test_aclose_without_start(self, backend_factory: BackendFactory) -> None:
        """`aclose`: "Closing twice, or without `start`, is fine."."""

        async def main() -> None:
            backend = backend_factory()
            await backend.aclose()
            await backend.aclose()

        asyncio.run(main())

    def test_aclose_twice_and_after_it_everything_raises_closed(
        self, backend_factory: BackendFactory
    ) -> None:
        """`aclose`: "Closing twice … is fine."; a closed backend raises `BackendClosed`."""

        async def main() -> None:
            backend = backend_factory()
            await backend.start()
            await backend.aclose()
            await backend.aclose()
            await self._refuses_work(backend)

        asyncio.run(main())

    def test_failed_start_names_its_cause(self, broken_backend_factory: BackendFactory) -> None:
        """`start`: "Raises `ModelFileInvalid` or `ModelLoadFailed` with the true cause. If it
        raises …, nothing stays allocated, and `aclose` may still be called.".
        """

        async def main() -> None:
            backend = broken_backend_factory()
            before = own_threads()
            with pytest.raises((ModelFileInvalid, ModelLoadFailed)) as caught:
                await backend.start()
            assert str(caught.value)
            assert not own_threads() - before
            await backend.aclose()
            await backend.aclose()
            with pytest.raises(BackendClosed):
                _ = backend.info

        asyncio.run(main())

    def test_cancelled_start_leaves_nothing(self, backend_factory: BackendFactory) -> None:
        """`start`: "If it raises or is cancelled, nothing stays allocated"."""

        async def main() -> None:
            backend = backend_factory()
            before = own_threads()
            starting = asyncio.create_task(backend.start())
            await asyncio.sleep(0)
            cancelled = starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            if cancelled and starting.cancelled():
                assert not own_threads() - before
            await backend.aclose()
            assert not own_threads() - before

        asyncio.run(main())

    def test_nothing_is_left_after_aclose(self, backend_factory: BackendFactory) -> None:
        """`aclose`: "When it returns, no thread, process or file descriptor … is left."."""

        async def main() -> None:
            # The first round may open what libraries keep for the life of the process.
            await self._work_and_close(backend_factory())
            before = traces()
            await self._work_and_close(backend_factory())
            await assert_all_closed(before)

        threads = own_threads()
        asyncio.run(main())
        assert not own_threads() - threads
        assert not multiprocessing.active_children()

    @on_backend
    async def test_closing_ends_requests_in_flight(self, backend: Backend) -> None:
        """`aclose`: "requests in flight raise `BackendClosed`", the waiting ones as well."""

        async def run() -> ThemisError | None:
            try:
                await complete(backend, self.long_request(backend))
            except ThemisError as error:
                return error
            return None

        first = await begin(backend, self.long_request(backend))
        others = [asyncio.create_task(run()) for _ in range(24)]
        assert isinstance(await anext(first), Delta)
        await backend.aclose()
        with pytest.raises(BackendClosed):
            async for _ in first:
                pass
        for error in await asyncio.gather(*others):
            assert isinstance(error, BackendClosed)

    async def _work_and_close(self, backend: Backend) -> None:
        await backend.start()
        events = await begin(backend, self.long_request(backend))
        await complete(backend, self.request(backend))
        await events.aclose()
        await idle(backend)
        await backend.aclose()

    async def _refuses_work(self, backend: Backend) -> None:
        with pytest.raises(BackendClosed):
            _ = backend.info
        with pytest.raises(BackendClosed):
            await complete(backend, plain_request(self.prompt))
        with pytest.raises(BackendClosed):
            await backend.tokenize(self.prompt)


def plain_request(prompt: str) -> GenerateRequest:
    """A request for a backend whose capabilities cannot be asked."""
    return GenerateRequest(prompt=prompt, sampling=SamplingParams(max_tokens=1))
