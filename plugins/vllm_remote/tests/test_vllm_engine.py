"""The engine door on a stub of vLLM: what it asks of the engine, and what becomes of its errors."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from themis_core.errors import BackendFailed, InvalidRequest, ThemisError
from themis_tiny_model import path
from themis_vllm_remote.door import Order
from themis_vllm_remote.engine.door import EngineDoor
from themis_vllm_remote.settings import EngineSettings

from .test_vllm_http import asked

ADAPTER = str(path("lora-json-peft"))


class Engine:
    """In the place of `AsyncLLM`."""

    def __init__(self) -> None:
        self.errored = False
        self.adapters: list[int] = []
        self.unloadable = True

    async def add_lora(self, request: Any) -> bool:
        self.adapters.append(request.lora_int_id)
        return True

    async def remove_lora(self, number: int) -> bool:
        if not self.unloadable:
            raise RuntimeError("the engine core says no")
        self.adapters.remove(number)
        return True


def _params(**given: Any) -> Any:
    if given["min_tokens"] > given["max_tokens"]:
        raise ValueError("min_tokens must be less than or equal to max_tokens")
    return given


def door_on(engine: Any, **settings: Any) -> EngineDoor:
    """An opened door, on a CPU."""
    door = EngineDoor(EngineSettings(path="/model", **settings))
    door._llm = engine
    door._vllm = SimpleNamespace(
        on_cpu=True,
        LoRARequest=lambda name, number, path: SimpleNamespace(lora_int_id=number),
        SamplingParams=_params,
        RequestOutputKind=SimpleNamespace(DELTA=1),
        AsyncEngineArgs=dict,
    )
    return door


def test_no_more_adapters_at_once_than_there_is_room_for() -> None:
    async def main() -> None:
        engine = Engine()
        door = door_on(engine, max_adapters=1)
        loads = [door.load_adapter(name, ADAPTER) for name in "ab"]
        first, second = await asyncio.gather(*loads, return_exceptions=True)
        assert first is None
        assert isinstance(second, InvalidRequest)
        assert engine.adapters == [1]

    asyncio.run(main())


@pytest.mark.parametrize("most", [1, 7, 8, 20])
def test_vllm_keeps_at_least_as_many_adapters_as_it_has_places(most: int) -> None:
    """It refuses to start otherwise."""
    arguments = door_on(None, max_adapters=most)._arguments(Path("/model"))
    assert arguments["max_loras"] == most + 1
    assert arguments["max_cpu_loras"] >= max(most + 1, 8)


def test_an_adapter_that_the_engine_does_not_unload_stays() -> None:
    async def main() -> None:
        engine = Engine()
        door = door_on(engine, max_adapters=1)
        await door.load_adapter("a", ADAPTER)
        engine.unloadable = False
        with pytest.raises(BackendFailed, match="says no"):
            await door.unload_adapter("a")
        engine.unloadable = True
        await door.unload_adapter("a")
        assert engine.adapters == []

    asyncio.run(main())


def test_values_that_vllm_refuses_are_an_error_of_the_request() -> None:
    async def main() -> None:
        order = Order(request=asked(max_tokens=None, min_tokens=5000), ids=[1], limit=2047)
        async with aclosing(door_on(Engine()).generate(order)) as stream:
            with pytest.raises(ThemisError, match="min_tokens must be") as caught:
                await anext(stream)
        assert isinstance(caught.value, InvalidRequest)

    asyncio.run(main())
