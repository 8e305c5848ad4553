"""Starting, stopping, and the plugin's entry."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from unittest.mock import AsyncMock

import httpx
import pytest

from themis_core.errors import ConfigInvalid
from themis_core.hooks import FrontDoor, FrontDoorPlugin
from themis_core.messages import Delta, Started
from themis_core.plugins import Registry, make
from themis_openai_server.server import create
from themis_openai_server.settings import OpenAISettings
from themis_openai_server.sockets import bind

from .conftest import WAIT_S, LoopThread, OpenDoor, ScriptedRuntime, Stall

CHAT = {"messages": [{"role": "user", "content": "x"}]}


def new(host: str = "127.0.0.1", port: int = 0, **settings: int) -> FrontDoor:
    return create(OpenAISettings(**settings), ScriptedRuntime(), host, port)  # type: ignore[arg-type]


def test_life() -> None:
    async def main() -> None:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        door = new()
        assert isinstance(door, FrontDoor)
        assert door.url == ""
        await door.aclose()
        await door.start()
        assert {number: signal.getsignal(number) for number in before} == before
        with pytest.raises(RuntimeError):
            await door.start()
        waiting = asyncio.create_task(door.wait())
        async with httpx.AsyncClient() as client:
            assert (await client.get(door.url + "/health")).status_code == 200
            waiting.cancel()
            await asyncio.wait([waiting])
            assert (await client.get(door.url + "/health")).status_code == 200
            await asyncio.gather(door.aclose(), door.aclose(), door.wait())
        await door.aclose()
        await door.wait()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*door.url.removeprefix("http://").split(":"))

    asyncio.run(main())


def test_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigInvalid, match="already in use") as caught:
            asyncio.run(new(port=port).start())
    assert caught.value.field == "server.port"


@pytest.mark.parametrize("host", ["a..b", "203.0.113.7"])
def test_bad_host(host: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        asyncio.run(new(host=host).start())
    assert caught.value.field == "server.host"


def test_an_address_that_is_absent_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        kind, tcp = socket.SOCK_STREAM, socket.IPPROTO_TCP
        found = [
            (socket.AF_INET, kind, tcp, "", ("203.0.113.7", 0)),
            (socket.AF_INET, kind, tcp, "", ("127.0.0.1", 0)),
        ]
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", AsyncMock(return_value=found))
        sockets = await bind("localhost", 0)
        assert [s.getsockname()[0] for s in sockets] == ["127.0.0.1"]
        sockets[0].close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")]
)
def test_url(host: str, shown: str) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")

    async def main() -> None:
        door = new(host=host)
        await door.start()
        try:
            assert door.url.startswith(f"http://{shown}:")
            async with httpx.AsyncClient() as client:
                assert (await client.get(door.url + "/health")).status_code == 200
        finally:
            await door.aclose()

    asyncio.run(main())


def test_running_requests_may_end(open_door: OpenDoor, server_loop: LoopThread) -> None:
    door = open_door()
    stall = Stall()
    door.runtime.script = [stall, *door.runtime.script]
    replies: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: replies.append(door.chat()))
    asking.start()
    assert stall.reached.wait(WAIT_S)
    closing = asyncio.run_coroutine_threadsafe(door.server.aclose(), server_loop.loop)
    stall.release()
    closing.result(WAIT_S)
    asking.join(WAIT_S)
    assert replies[0].json()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_last_are_cancelled(
    open_door: OpenDoor, server_loop: LoopThread, stream: bool
) -> None:
    door = open_door(shutdown_grace=0)
    stall = Stall()
    door.runtime.script = [Started(prompt_tokens=1), Delta(text="a", token_ids=(1,)), stall]
    replies: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: replies.append(door.chat(stream=stream)))
    asking.start()
    assert stall.reached.wait(WAIT_S)
    server_loop.run(door.server.aclose())
    asking.join(WAIT_S)
    assert door.runtime.closed_early.acquire(blocking=False)
    assert "shutting down" in replies[0].text
    assert replies[0].status_code == (200 if stream else 503)
    assert replies[0].text.endswith("data: [DONE]\n\n") == stream


def test_the_registry_makes_it() -> None:
    registry = Registry()
    descriptor = registry.find("front_doors", "openai", FrontDoorPlugin)
    door = make(descriptor, descriptor.settings(), ScriptedRuntime(), "127.0.0.1", 0)
    assert isinstance(door, FrontDoor)


def test_discovery_imports_no_server() -> None:
    code = (
        "import sys, themis_openai_server.plugin as p; p.themis_front_doors();"
        "print([m for m in ('uvicorn', 'httptools', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_setting_says_what_it_means() -> None:
    import msgspec

    from themis_core.config.structure import description

    for field in msgspec.structs.fields(OpenAISettings):
        assert description(field.type)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
