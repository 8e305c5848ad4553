"""The checks of adapters and embeddings: the reference passes them, and faults are found."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

import themis_tiny_model
from themis_core.errors import AdapterNotFound, ModelFileInvalid, ThemisError
from themis_core.messages import (
    AdapterWeight,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    Usage,
)
from themis_engine import EngineBackend, EngineOptions
from themis_testkit.conformance.adapters import AdapterChecks, AdapterFiles
from themis_testkit.conformance.base import BackendFactory, idle
from themis_testkit.conformance.embeddings import EmbeddingChecks
from themis_testkit.reference.runner import ReferenceRunner

replace = msgspec.structs.replace
FILES: AdapterFiles = [
    (name, str(themis_tiny_model.path(f"lora-{name}-peft"))) for name in ("german", "json")
]


class Faithful(EngineBackend):
    """The reference; its subclasses have one fault each."""

    def __init__(self) -> None:
        load = partial(
            ReferenceRunner, themis_tiny_model.path("hf"), parallel=4, prefix_sequences=8
        )
        super().__init__(load, backend="faulty", options=EngineOptions(parallel=4))

    async def change(self, adapters: tuple[AdapterWeight, ...]) -> tuple[AdapterWeight, ...]:
        return adapters

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        changed = replace(request, adapters=await self.change(request.adapters))
        async with aclosing(super().generate(changed)) as events:
            async for event in events:
                yield event


class TestFaithful(AdapterChecks, EmbeddingChecks):
    @pytest.fixture
    def backend_factory(self) -> BackendFactory:
        return Faithful

    @pytest.fixture
    def adapter_files(self) -> AdapterFiles:
        return FILES


class IgnoresThem(Faithful):
    async def change(self, adapters: tuple[AdapterWeight, ...]) -> tuple[AdapterWeight, ...]:
        return ()


class IgnoresWeights(Faithful):
    async def change(self, adapters: tuple[AdapterWeight, ...]) -> tuple[AdapterWeight, ...]:
        return tuple(replace(adapter, weight=1.0) for adapter in adapters)


class TakesTheFirst(Faithful):
    async def change(self, adapters: tuple[AdapterWeight, ...]) -> tuple[AdapterWeight, ...]:
        return adapters[:1]


class IgnoresTheUnknown(Faithful):
    async def change(self, adapters: tuple[AdapterWeight, ...]) -> tuple[AdapterWeight, ...]:
        known = {adapter.name for adapter in await self.adapters()}
        return tuple(adapter for adapter in adapters if adapter.name in known)


class KeepsTheLast(Faithful):
    last: tuple[AdapterWeight, ...] = ()

    async def change(self, adapters: tuple[AdapterWeight, ...]) -> tuple[AdapterWeight, ...]:
        known = {adapter.name for adapter in await self.adapters()}
        if adapters or not known.issuperset(adapter.name for adapter in self.last):
            self.last = adapters
        return self.last


class Overwrites(Faithful):
    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        with contextlib.suppress(AdapterNotFound):
            await self.unload_adapter(name)
        await super().load_adapter(name, path, description)


class SwallowsBrokenFiles(Faithful):
    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        with contextlib.suppress(ModelFileInvalid):
            await super().load_adapter(name, path, description)


class UnloadsInTheBackground(Faithful):
    async def unload_adapter(self, name: str) -> None:
        self.task = asyncio.create_task(super().unload_adapter(name))
        await asyncio.sleep(0)


class ServesWhileUnloading(Faithful):
    async def unload_adapter(self, name: str) -> None:
        await idle(self)
        await super().unload_adapter(name)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (IgnoresThem, "test_loading_and_unloading_while_serving"),
        (IgnoresThem, "test_each_request_has_its_own"),
        (IgnoresWeights, "test_two_are_mixed_by_weight"),
        (TakesTheFirst, "test_two_are_mixed_by_weight"),
        (IgnoresTheUnknown, "test_wrong_names_are_errors"),
        (IgnoresTheUnknown, "test_loading_and_unloading_while_serving"),
        (IgnoresTheUnknown, "test_unloading_waits_for_those_who_use_it"),
        (KeepsTheLast, "test_each_request_has_its_own"),
        (KeepsTheLast, "test_mixed_company_equals_alone"),
        (Overwrites, "test_a_name_is_loaded_once"),
        (SwallowsBrokenFiles, "test_broken_files_are_refused"),
        (UnloadsInTheBackground, "test_unloading_waits_for_those_who_use_it"),
        (ServesWhileUnloading, "test_unloading_waits_for_those_who_use_it"),
    ],
)
def test_faults_with_adapters_are_found(fault: type[Faithful], check: str, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("no adapter")
    parameters: dict[str, Any] = {"adapter_files": FILES}
    if "broken" in check:
        parameters["broken_adapter_file"] = str(tmp_path / "broken")
    with pytest.raises((AssertionError, ThemisError, pytest.fail.Exception)):
        getattr(AdapterChecks(), check)(fault, **parameters)


class ChangesVectors(Faithful):
    """Its subclasses change what is embedded."""

    def vectors(self, found: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        return found

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        response = await super().embed(request)
        changed = self.vectors(list(response.embeddings))
        return replace(response, embeddings=tuple(changed))


class NotNormalised(ChangesVectors):
    def vectors(self, found: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        return [tuple(2 * value for value in vector) for vector in found]


class Sorted(ChangesVectors):
    def vectors(self, found: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        return sorted(found)


class CompanyMatters(ChangesVectors):
    def vectors(self, found: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        mixed = [[a + 0.5 * b for a, b in zip(v, found[0], strict=True)] for v in found]
        return [tuple(value / math.hypot(*vector) for value in vector) for vector in mixed]


class AllAlike(ChangesVectors):
    def vectors(self, found: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        return found[:1] * len(found)


class CountsNothing(ChangesVectors):
    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        return replace(await super().embed(request), usage=Usage())


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (NotNormalised, "test_vectors_have_length_one"),
        (Sorted, "test_order_is_that_of_the_inputs"),
        (AllAlike, "test_order_is_that_of_the_inputs"),
        (AllAlike, "test_together_equals_alone"),
        (CompanyMatters, "test_together_equals_alone"),
        (CountsNothing, "test_token_ids_are_inputs"),
    ],
)
def test_faults_with_embeddings_are_found(fault: type[Faithful], check: str) -> None:
    with pytest.raises(AssertionError):
        getattr(EmbeddingChecks(), check)(fault)
