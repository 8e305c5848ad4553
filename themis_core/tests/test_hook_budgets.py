"""Budgets in the configuration: checked, described, in force, and changed by a reload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import themis_core
from themis_core.config import load
from themis_core.config.sample import sample
from themis_core.config.schema import json_schema
from themis_core.errors import ConfigInvalid, HookTimeout
from themis_core.messages import GenerateRequest
from themis_core.plugins import Registry

# A validator and a quota that hang while the prompt says so.
PLUGIN = """
import asyncio
from typing import Annotated
import msgspec
from themis_core.hooks import BackendPlugin, QuotaPlugin, ValidatorPlugin, hookimpl
from themis_core.messages import Delta, Done, Finished, ModelInfo, Started, Usage

class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    word: Annotated[str, msgspec.Meta(description="At which it hangs.")] = "hang"

class Backend:
    info = ModelInfo(backend="{name}")

    def __init__(self, settings):
        pass

    async def start(self):
        pass

    async def generate(self, request):
        yield Started(prompt_tokens=1)
        yield Delta(text="answer")
        yield Finished(reason="stop")
        yield Done(usage=Usage(prompt_tokens=1, completion_tokens=1))

    async def aclose(self):
        pass

class Hook:
    made = []

    def __init__(self, settings):
        self.word = settings.word
        self.closed = False
        self.made.append(self)

    async def hang(self, request):
        if self.word in request.prompt:
            await asyncio.Event().wait()

    async def check_input(self, request):
        await self.hang(request)
        return request

    def check_output(self, request):
        return None

    async def reserve(self, request):
        await self.hang(request)
        return self

    async def settle(self, usage):
        assert not self.closed

    async def release(self):
        assert not self.closed

    async def aclose(self):
        self.closed = True

@hookimpl
def themis_backends():
    return [BackendPlugin(name="{name}", help="", factory="{module}:Backend")]

@hookimpl
def themis_quotas():
    return [QuotaPlugin(name="{name}", help="Q.", settings=Settings, factory="{module}:Hook")]

@hookimpl
def themis_validators():
    return [ValidatorPlugin(name="{name}", help="V.", settings=Settings, factory="{module}:Hook")]
"""
MODEL = '[models.m]\nbackend = "mine"\n'
VALIDATOR = '[validators.judge]\nuse = "mine"\n'
QUOTA = '[quota]\nuse = "mine"\n'

Writer = Callable[[str], Path]


@pytest.fixture
def module(shelf: Any) -> Any:
    import importlib

    return importlib.import_module(shelf.install("mine", PLUGIN))


@pytest.fixture
def registry(shelf: Any, module: Any) -> Registry:
    found: Registry = shelf.registry()
    return found


@pytest.mark.parametrize("table", [VALIDATOR, QUOTA])
def test_both_modes_by_configuration(registry: Registry, write_config: Writer, table: str) -> None:
    async def main() -> None:
        hang = GenerateRequest(prompt="hang")
        path = write_config(MODEL + table + "timeout = 0.005\n")
        async with themis_core.open(path, registry=registry) as runtime:
            assert (await runtime.complete(GenerateRequest(prompt="x"))).text == "answer"
            with pytest.raises(HookTimeout, match=r"0\.005 seconds") as caught:
                await runtime.complete(hang)
            assert caught.value.plugin == "mine"
            name = "quota" if table is QUOTA else "validators.judge"
            (late,) = [s for s in runtime.hook_stats() if s.timeouts]
            assert late.hook == name
        path = write_config(MODEL + table + 'timeout = 0.005\non_failure = "open"\n')
        async with themis_core.open(path, registry=registry) as runtime:
            assert (await runtime.complete(hang)).text == "answer"

    asyncio.run(main())


def test_wrong_values_are_problems(registry: Registry, write_config: Writer) -> None:
    other = '[validators.other]\nuse = "mine"\ntimout = 3\n'
    text = VALIDATOR + "timeout = 0\n" + QUOTA + 'on_failure = "ajar"\n' + other
    path = write_config(MODEL + text)
    with pytest.raises(ConfigInvalid) as caught:
        load(path, registry)
    problems = "\n".join(map(str, caught.value.problems))
    assert f"{path}:5: validators.judge.timeout" in problems
    assert f"{path}:8: quota.on_failure" in problems
    assert "validators.other.timout: unknown key" in problems


def test_defaults(registry: Registry, write_config: Writer) -> None:
    config = load(write_config(MODEL + VALIDATOR + QUOTA), registry)
    assert config.quota is not None
    for keys in (config.quota.keys, config.validators["judge"].keys):
        assert (keys.timeout, keys.on_failure) == (5.0, "closed")


def test_schema_and_sample_have_them(registry: Registry) -> None:
    schema = json_schema(registry)
    variants = [*schema["properties"]["quota"]["anyOf"]]
    variants += schema["properties"]["validators"]["additionalProperties"]["anyOf"]
    assert len(variants) == 2
    for variant in variants:
        assert variant["properties"]["timeout"]["exclusiveMinimum"] == 0
        assert variant["properties"]["on_failure"]["enum"] == ["closed", "open"]
        assert variant["required"] == ["use"]
    lines = sample(registry).splitlines()
    assert lines.count("# timeout = 5.0") == 2
    assert lines.count('# on_failure = "closed"') == 2
    assert lines.count('# use = "mine"') == 2


def test_a_reload_changes_a_budget_and_keeps_the_plugin(
    registry: Registry, module: Any, write_config: Writer
) -> None:
    async def main() -> None:
        hang = GenerateRequest(prompt="hang")
        hooks = MODEL + VALIDATOR + "{}" + QUOTA
        path = write_config(hooks.format("timeout = 0.005\n"))
        async with themis_core.open(path, registry=registry) as runtime:
            with pytest.raises(HookTimeout):
                await runtime.complete(hang)
            before = list(module.Hook.made)
            write_config(
                hooks.format('timeout = 0.005\non_failure = "open"\n') + "timeout = 0.005\n"
            )
            report = await runtime.reload()
            assert report.changed == ("quota", "validators.judge")
            with pytest.raises(HookTimeout, match="quota"):  # The validator lets it pass now.
                await runtime.complete(hang)
            assert module.Hook.made == before
            assert not any(hook.closed for hook in before)
            # The counters go on.
            seen = {(s.hook, s.call): s.timeouts for s in runtime.hook_stats()}
            assert seen["validators.judge", "check_input"] == 2
            # A bad one changes no budget.
            write_config(hooks.format("timeout = 0\n"))
            with pytest.raises(ConfigInvalid):
                await runtime.reload()
            with pytest.raises(HookTimeout, match="quota"):
                await runtime.complete(hang)
        assert all(hook.closed for hook in module.Hook.made)

    asyncio.run(main())
