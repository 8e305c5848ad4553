"""LoRA adapters: loaded and unloaded while the backend serves, chosen by each request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import AdapterNotFound, InvalidRequest, ModelFileInvalid
from themis_core.messages import AdapterWeight, Choice, GenerateRequest
from themis_testkit.conformance.base import (
    ConformanceBase,
    begin,
    complete,
    fields,
    idle,
    need,
    on_backend,
)

AdapterFiles = list[tuple[str, str]]


class AdapterChecks(ConformanceBase):
    """`Backend.load_adapter`, `unload_adapter`, `adapters`, and `GenerateRequest.adapters`."""

    adapter_prompt: ClassVar[str] = "What is the capital of France?"
    """A prompt that the backend answers otherwise under each of `adapter_files`."""

    @pytest.fixture
    def adapter_files(self) -> AdapterFiles:
        """(name, path) of at least two adapters that the model can take. Optional."""
        pytest.skip("the fixture adapter_files is not given")

    @pytest.fixture
    def broken_adapter_file(self, tmp_path: Path) -> str:
        """The path of something that is no adapter."""
        file = tmp_path / "broken"
        file.write_bytes(b"this is no adapter " * 100)
        return str(file)

    @on_backend
    async def test_loading_and_unloading_while_serving(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """`load_adapter`: "Make a LoRA adapter usable in requests": whoever runs goes on."""
        await self._ready(backend)
        plain = await self._answer(backend)
        running = asyncio.create_task(self._answer(backend, max_tokens=96))
        for count, (name, path) in enumerate(adapter_files, 1):
            await backend.load_adapter(name, path)
            assert {a.name for a in await backend.adapters()} == {
                n for n, _ in adapter_files[:count]
            }
            assert await self._answer(backend, name) != plain
        undisturbed = await running
        for name, _ in adapter_files:
            await backend.unload_adapter(name)
            with pytest.raises(AdapterNotFound):
                await self._answer(backend, name)
        assert await backend.adapters() == ()
        assert await self._answer(backend) == plain
        assert await self._answer(backend, max_tokens=96) == undisturbed

    @on_backend
    async def test_each_request_has_its_own(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """`GenerateRequest.adapters`: of this request, and what it left in caches of no other."""
        await self._loaded(backend, adapter_files)
        first, second = adapter_files[0][0], adapter_files[1][0]
        sets = [(), (first,), (second,), (first, second)]
        answers = [await self._answer(backend, *names) for names in sets]
        assert len({answer.token_ids for answer in answers[:3]}) == 3
        for _ in range(2):
            for names, answer in zip(reversed(sets), reversed(answers), strict=True):
                assert await self._answer(backend, *names) == answer

    @on_backend
    async def test_two_are_mixed_by_weight(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """`AdapterWeight`: "how strongly it applies"; several add up, in whatever order."""
        await self._loaded(backend, adapter_files)
        (first, _), (second, _) = adapter_files[:2]
        half = (AdapterWeight(name=first, weight=0.5), AdapterWeight(name=second, weight=0.5))
        mixed = await self._answer(backend, *half)
        assert await self._answer(backend, *reversed(half)) == mixed
        none = AdapterWeight(name=first, weight=0.0)
        assert await self._answer(backend, none) == await self._answer(backend)
        if "sampling.logprobs" not in fields(backend):
            pytest.skip("the effect of weights is seen in logprobs, which are not declared")
        seen = []
        for names in ((), (first,), (second,), (half[0],), (half[1],), (first, second), half):
            choice = await self._answer(backend, *names, logprobs=0, max_tokens=4)
            seen.append(tuple((entry.token_id, entry.logprob) for entry in choice.logprobs))
        assert len(set(seen)) == len(seen)

    @on_backend
    async def test_mixed_company_equals_alone(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """Requests with different adapters at once, and some that wait: none notices the others."""
        await self._loaded(backend, adapter_files)
        (first, _), (second, _) = adapter_files[:2]
        half = AdapterWeight(name=second, weight=0.5)
        sets: list[tuple[str | AdapterWeight, ...]] = [(), (first,), (second,), (first, half)]
        requests = [
            self._request(backend, *names, prompt=f"{self.adapter_prompt}{' Say it.' * extra}")
            for extra in range(5)
            for names in sets
        ]
        alone = [(await complete(backend, request)).choices[0] for request in requests]
        together = await asyncio.gather(*(complete(backend, request) for request in requests))
        assert [completion.choices[0] for completion in together] == alone

    @on_backend
    async def test_wrong_names_are_errors(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """Never ignored: an unknown adapter, and one that is named twice."""
        await self._loaded(backend, adapter_files)
        name = adapter_files[0][0]
        with pytest.raises(AdapterNotFound) as caught:
            await self._answer(backend, name, "no such adapter")
        assert caught.value.field == "adapters"
        assert "no such adapter" in str(caught.value)
        with pytest.raises(InvalidRequest) as twice:
            await self._answer(backend, name, name)
        assert twice.value.field == "adapters"
        with pytest.raises(AdapterNotFound):
            await backend.unload_adapter("no such adapter")
        await idle(backend)
        assert (await self._answer(backend)).token_ids

    @on_backend
    async def test_broken_files_are_refused(
        self, backend: Backend, adapter_files: AdapterFiles, broken_adapter_file: str
    ) -> None:
        """`load_adapter`: "`ModelFileInvalid` with the cause"; the name stays free."""
        await self._ready(backend)
        plain = await self._answer(backend)
        for path in (broken_adapter_file, f"{broken_adapter_file}-missing"):
            with pytest.raises(ModelFileInvalid) as caught:
                await backend.load_adapter("broken", path)
            assert path in str(caught.value)
        assert await backend.adapters() == ()
        assert await self._answer(backend) == plain
        await backend.load_adapter("broken", adapter_files[0][1])
        assert await self._answer(backend, "broken") != plain

    @on_backend
    async def test_a_name_is_loaded_once(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """`load_adapter`: "`InvalidRequest` if one of that name is loaded", or being loaded."""
        await self._ready(backend)
        (name, path), (_, other) = adapter_files[:2]
        loads = [backend.load_adapter(name, path) for _ in range(3)]
        results = await asyncio.gather(*loads, return_exceptions=True)
        assert [type(r) for r in results if r is not None] == [InvalidRequest] * 2
        answer = await self._answer(backend, name)
        with pytest.raises(InvalidRequest):
            await backend.load_adapter(name, other)
        assert await self._answer(backend, name) == answer
        await backend.unload_adapter(name)
        await backend.load_adapter(name, other)
        assert await self._answer(backend, name) != answer

    @on_backend
    async def test_unloading_waits_for_those_who_use_it(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """`unload_adapter`: "those that run with it finish first, and this waits for them"."""
        await self._loaded(backend, adapter_files)
        (name, _), (other, _) = adapter_files[:2]
        long = self.long_request(backend).sampling
        request = msgspec.structs.replace(self._request(backend, name), sampling=long)
        events = await begin(backend, request)
        unloading = asyncio.create_task(backend.unload_adapter(name))
        await asyncio.sleep(0)
        with pytest.raises(AdapterNotFound):
            await self._answer(backend, name)
        await self._answer(backend, other)
        assert not unloading.done()
        await anext(events)
        assert not unloading.done()
        await events.aclose()
        await unloading
        assert name not in {a.name for a in await backend.adapters()}
        with pytest.raises(AdapterNotFound):
            await backend.unload_adapter(name)

    @on_backend
    async def test_unloading_can_be_given_up(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """A cancelled `unload_adapter` leaves a backend that works, and the request undisturbed."""
        await self._loaded(backend, adapter_files)
        name = adapter_files[0][0]
        long = self.long_request(backend).sampling
        request = msgspec.structs.replace(self._request(backend, name), sampling=long)
        events = await begin(backend, request)
        unloading = asyncio.create_task(backend.unload_adapter(name))
        await asyncio.sleep(0)
        unloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unloading
        await anext(events)
        await events.aclose()
        await idle(backend)
        await self._answer(backend, adapter_files[1][0])

    # --- requests --------------------------------------------------------------------------------

    async def _ready(self, backend: Backend) -> None:
        need(backend, "adapters", "sampling.temperature", "deterministic")
        for loaded in await backend.adapters():  # Those that the configuration names.
            await backend.unload_adapter(loaded.name)

    async def _loaded(self, backend: Backend, adapter_files: AdapterFiles) -> None:
        await self._ready(backend)
        for name, path in adapter_files:
            await backend.load_adapter(name, path)

    def _request(
        self,
        backend: Backend,
        *adapters: str | AdapterWeight,
        prompt: str | None = None,
        **sampling: Any,
    ) -> GenerateRequest:
        request = self.request(backend, prompt or self.adapter_prompt, **sampling)
        weights = tuple(AdapterWeight(name=a) if isinstance(a, str) else a for a in adapters)
        return msgspec.structs.replace(request, adapters=weights)

    async def _answer(
        self, backend: Backend, *adapters: str | AdapterWeight, **sampling: Any
    ) -> Choice:
        request = self._request(backend, *adapters, **sampling)
        return (await complete(backend, request)).choices[0]
