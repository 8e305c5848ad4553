"""A running runtime gets a new configuration: no request is lost, nothing bad gets in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import themis_core
from themis_core.errors import (
    BackendClosed,
    ConfigInvalid,
    ModelLoadFailed,
    ModelNotFound,
    QuotaExceeded,
)
from themis_core.messages import GenerateRequest
from themis_core.runtime import Runtime

# A backend that answers with its settings, and waits at a gate where the test says so.
PLUGIN = """
import asyncio
from typing import Annotated
import msgspec
from themis_core.errors import ModelLoadFailed, QuotaExceeded, BackendClosed
from themis_core.hooks import BackendPlugin, QuotaPlugin, ValidatorPlugin, hookimpl
from themis_core.messages import Delta, Done, Finished, ModelInfo, Started, Usage

class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    says: Annotated[str, msgspec.Meta(extra={"secret": True})] = "a"
    fails: bool = False
    slow: bool = False

class Backend:
    live = []
    starting = []
    gate = None
    info = ModelInfo(backend="{name}")

    def __init__(self, settings):
        self.settings = settings

    async def start(self):
        if self.settings.fails:
            raise ModelLoadFailed("told to")
        if self.settings.slow:
            self.starting.append(str(self.settings.says))
            try:
                await self.gate.wait()
            finally:
                self.starting.remove(str(self.settings.says))
        self.live.append(self)

    async def generate(self, request):
        yield Started(prompt_tokens=1)
        for i in range(3):
            await asyncio.sleep(0)
            if request.prompt == "wait" and i == 1:
                await self.gate.wait()
            if self not in self.live:
                raise BackendClosed("closed under a request")
            yield Delta(text=self.settings.says)
        yield Finished(reason="stop")
        yield Done(usage=Usage(prompt_tokens=1, completion_tokens=3))

    async def aclose(self):
        if self in self.live:
            self.live.remove(self)

class QuotaSettings(msgspec.Struct, frozen=True, kw_only=True):
    closed: bool = False

class Quota:
    live = []

    def __init__(self, settings):
        self.settings = settings
        self.live.append(self)

    async def reserve(self, request):
        if self.settings.closed:
            raise QuotaExceeded("closed")
        return self

    async def settle(self, usage):
        assert self in self.live

    async def release(self):
        assert self in self.live

    async def aclose(self):
        if self in self.live:
            self.live.remove(self)

@hookimpl
def themis_backends():
    return [BackendPlugin(name="{name}", help="", settings=Settings, factory="{module}:Backend")]

@hookimpl
def themis_quotas():
    return [QuotaPlugin(name="{name}", help="", settings=QuotaSettings, factory="{module}:Quota")]
"""

Writer = Callable[[str], Path]


class House:
    def __init__(self, shelf: Any, write: Writer) -> None:
        import importlib

        self.module: Any = importlib.import_module(shelf.install("mine", PLUGIN))
        self.registry = shelf.registry()
        self.write = write

    def open(self, text: str) -> Runtime:
        return themis_core.open(self.write(text), registry=self.registry)

    @property
    def live(self) -> list[str]:
        return sorted(backend.settings.says for backend in self.module.Backend.live)


@pytest.fixture
def house(shelf: Any, write_config: Writer) -> House:
    return House(shelf, write_config)


def models(**says: str) -> str:
    tables = (f'[models.{name}]\nbackend = "mine"\nsays = "{s}"\n' for name, s in says.items())
    return "".join(tables)


async def ask(runtime: Runtime, model: str = "", prompt: str = "x") -> str:
    completion = await runtime.complete(GenerateRequest(model=model, prompt=prompt))
    return completion.choices[0].text


async def settled(done: Callable[[], bool]) -> None:
    """Closing happens behind the requests; it ends by itself."""
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110 - there is no event to wait for.
            await asyncio.sleep(0)


def test_added_removed_and_changed(house: House) -> None:
    async def main() -> None:
        async with house.open(models(a="A", b="B", c="C")) as runtime:
            assert [await ask(runtime, m) for m in "abc"] == ["AAA", "BBB", "CCC"]
            kept = next(b for b in house.module.Backend.live if b.settings.says == "A")
            house.write(models(a="A", b="X", d="D"))
            report = await runtime.reload()
            assert (report.added, report.removed) == (("models.d",), ("models.c",))
            assert (report.changed, report.restart) == (("models.b",), ())
            assert [await ask(runtime, m) for m in "abd"] == ["AAA", "XXX", "DDD"]
            with pytest.raises(ModelNotFound):
                await ask(runtime, "c")
            await settled(lambda: house.live == ["A", "D", "X"])
            assert kept in house.module.Backend.live
        assert house.live == []

    asyncio.run(main())


def test_running_requests_finish_on_the_old_ones(house: House) -> None:
    async def main() -> None:
        gate = house.module.Backend.gate = asyncio.Event()
        quota = '[quota]\nuse = "mine"\n'
        async with house.open(models(a="A", b="B") + quota) as runtime:
            running = [asyncio.create_task(ask(runtime, m, "wait")) for m in "ab"]
            await settled(lambda: house.live == ["A", "B"])
            house.write(models(a="X") + quota + "closed = true\n")
            await runtime.reload()
            house.write(models(a="Y"))
            await runtime.reload()
            assert await ask(runtime, "a") == "YYY"
            with pytest.raises(ModelNotFound):
                await ask(runtime, "b")
            assert house.live == ["A", "B", "Y"]
            assert len(house.module.Quota.live) == 1
            gate.set()
            assert await asyncio.gather(*running) == ["AAA", "BBB"]
            await settled(lambda: house.live == ["Y"] and not house.module.Quota.live)

    asyncio.run(main())


def test_closing_closes_the_old_ones_too(house: House) -> None:
    async def main() -> None:
        house.module.Backend.gate = asyncio.Event()
        runtime = house.open(models(a="A"))
        await runtime.start()
        running = asyncio.create_task(ask(runtime, "a", "wait"))
        await settled(lambda: house.live == ["A"])
        house.write(models(a="B"))
        await runtime.reload()
        assert await ask(runtime) == "BBB"
        await runtime.aclose()
        assert house.live == []
        running.cancel()
        await asyncio.wait([running])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("= 3", ConfigInvalid),
        ('[models.a]\nbackend = "mine"\nsayz = 3', ConfigInvalid),
        ('[models.a]\nbackend = "mine"\nsays = "env:THEMIS_NO_SUCH"', ConfigInvalid),
        (models(a="B") + "preload = true\nfails = true\n", ModelLoadFailed),
        (
            models(b="B") + "preload = true\n" + models(a="C") + "preload = true\nfails = true\n",
            ModelLoadFailed,
        ),
    ],
)
def test_a_bad_one_changes_nothing(house: House, bad: str, kind: type[Exception]) -> None:
    async def main() -> None:
        quota = '[quota]\nuse = "mine"\n'
        async with house.open(models(a="A") + 'aliases = ["z"]\n' + quota) as runtime:
            assert await ask(runtime) == "AAA"
            before = runtime.models()
            house.write(bad + "\n" + (quota + "closed = true\n" if "= 3" not in bad else ""))
            with pytest.raises(kind):
                await runtime.reload()
            assert runtime.models() == before
            assert await ask(runtime, "z") == "AAA"
            assert house.live == ["A"]
            assert len(house.module.Quota.live) == 1
            house.write(models(a="B"))
            await runtime.reload()
            assert await ask(runtime) == "BBB"

    asyncio.run(main())


def test_aliases_the_default_and_the_quota(house: House) -> None:
    async def main() -> None:
        first = models(a="A") + 'aliases = ["x"]\n' + models(b="B")
        async with house.open(first) as runtime:
            assert await ask(runtime, "x") == "AAA"
            house.write('default = "b"\n' + models(a="A") + 'aliases = ["y"]\n' + models(b="B"))
            assert (await runtime.reload()).changed == ("default", "models.a")
            assert house.live == ["A"]  # Only its names have changed.
            assert [m.aliases for m in runtime.models()] == [("y",), ()]
            assert (await ask(runtime, "y"), await ask(runtime)) == ("AAA", "BBB")
            with pytest.raises(ModelNotFound):
                await ask(runtime, "x")
            house.write(first + '[quota]\nuse = "mine"\nclosed = true\n')
            assert "quota" in (await runtime.reload()).added
            with pytest.raises(QuotaExceeded):
                await ask(runtime)

    asyncio.run(main())


def test_a_rotated_secret_is_a_change(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setenv("SAYS", "A")
        async with house.open(models(a="env:SAYS")) as runtime:
            assert await ask(runtime) == "AAA"
            assert str(await runtime.reload()) == "nothing has changed"
            monkeypatch.setenv("SAYS", "B")
            assert (await runtime.reload()).changed == ("models.a",)
            assert await ask(runtime) == "BBB"

    asyncio.run(main())


def test_without_asyncio(house: House) -> None:
    path = house.write(models(a="A"))
    with themis_core.open_blocking(path, registry=house.registry) as runtime:
        assert runtime.complete(GenerateRequest(prompt="x")).choices[0].text == "AAA"
        house.write(models(a="B"))
        assert runtime.reload().changed == ("models.a",)
        assert runtime.complete(GenerateRequest(prompt="x")).choices[0].text == "BBB"
        house.write("= 3")
        with pytest.raises(ConfigInvalid):
            runtime.reload()
        assert runtime.complete(GenerateRequest(prompt="x")).choices[0].text == "BBB"
    assert house.live == []


def test_backends_at_hand_cannot_be_reloaded() -> None:
    async def main() -> None:
        async with themis_core.open(backends={}) as runtime:
            with pytest.raises(ConfigInvalid, match="backends at hand"):
                await runtime.reload()

    asyncio.run(main())


def descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_reloads_under_load_lose_no_request_and_leave_nothing(house: House) -> None:
    async def main() -> None:
        async with house.open(models(a="0", b="B")) as runtime:
            stop = asyncio.Event()
            answers: list[str] = []

            async def client(model: str) -> None:
                while not stop.is_set():
                    answers.append(await ask(runtime, model))

            clients = [asyncio.create_task(client(m)) for m in "aabb"]

            async def change(number: int) -> None:
                house.write(models(a=str(number % 10), b="B"))
                await runtime.reload()
                seen = len(answers)
                await settled(lambda: len(answers) >= seen + 8)

            await change(1)  # A first one, which starts what Python keeps: its pool of threads.
            for _ in range(4):
                await asyncio.gather(*(asyncio.to_thread(lambda: None) for _ in range(40)))
            before = descriptors(), threading.active_count()
            for number in range(2, 22):
                await change(number)
            assert (descriptors(), threading.active_count()) == before
            stop.set()
            await asyncio.gather(*clients)
            await settled(lambda: house.live == ["1", "B"])
            assert set(answers) == {"BBB", *(str(n) * 3 for n in range(10))}

    asyncio.run(main())


SLOW = models(a="A") + models(b="B") + "preload = true\nslow = true\n"


def test_closing_during_a_reload_ends_it(house: House) -> None:
    async def main() -> None:
        gate = house.module.Backend.gate = asyncio.Event()
        runtime = house.open(models(a="A"))
        await runtime.start()
        house.write(SLOW)
        reloading = asyncio.create_task(runtime.reload())
        later = asyncio.create_task(runtime.reload())
        await settled(lambda: house.module.Backend.starting == ["B"])
        await runtime.aclose()
        assert reloading.done()
        results = await asyncio.gather(reloading, later, return_exceptions=True)
        assert [type(error) for error in results] == [BackendClosed, BackendClosed]
        with pytest.raises(BackendClosed):
            await runtime.reload()
        assert house.live == []
        assert house.module.Backend.starting == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not gate.is_set()

    asyncio.run(main())


def test_a_cancelled_reload_changes_nothing(house: House) -> None:
    async def main() -> None:
        house.module.Backend.gate = asyncio.Event()
        quota = '[quota]\nuse = "mine"\n'
        async with house.open(models(a="A")) as runtime:
            assert await ask(runtime) == "AAA"
            house.write(SLOW + quota)
            reloading = asyncio.create_task(runtime.reload())
            await settled(lambda: house.module.Backend.starting == ["B"])
            reloading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reloading
            assert house.live == ["A"]
            assert house.module.Backend.starting == []
            assert house.module.Quota.live == []
            assert [status.name for status in runtime.models()] == ["a"]
            house.write(models(a="X"))
            assert (await runtime.reload()).changed == ("models.a",)
            assert await ask(runtime) == "XXX"

    asyncio.run(main())


def test_two_reloads_at_once_come_one_after_the_other(house: House) -> None:
    async def main() -> None:
        async with house.open(models(a="A")) as runtime:
            house.write(models(a="B"))
            reports = await asyncio.gather(runtime.reload(), runtime.reload())
            assert [report.changed for report in reports] == [("models.a",), ()]
            assert await ask(runtime) == "BBB"

    asyncio.run(main())
