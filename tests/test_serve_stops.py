"""`themis serve` told to stop: while a model loads, and while an answer is being written."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import clean_environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

# Where it loads and where it generates, the backend connects to the test, says so, and waits until
# the test closes the connection. If it is cancelled instead, the test sees the connection end.
GATED = """
import asyncio
import os

from themis_core.hooks import BackendPlugin, hookimpl
from themis_core.messages import Delta, Done, Finished, ModelInfo, Started, Usage

@hookimpl
def themis_backends():
    return [BackendPlugin(name="gated", help="A test.", factory="gated:Gated")]

async def gate(word):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["GATE"]))
    try:
        writer.write(word)
        await reader.read()
        writer.write(b"released")
        await writer.drain()
    finally:
        writer.close()

class Gated:
    info = ModelInfo(backend="gated")

    def __init__(self, settings):
        pass

    async def start(self):
        await gate(b"load")

    async def generate(self, request):
        yield Started(prompt_tokens=1)
        yield Delta(text="first")
        await gate(b"generate")
        yield Delta(text=" last")
        yield Finished(reason="stop")
        yield Done(usage=Usage(prompt_tokens=1, completion_tokens=2))

    async def aclose(self):
        print("closed", flush=True)
"""


class Gate:
    """The test's side."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(60)
        self.port = self.listener.getsockname()[1]

    def reached(self, word: bytes) -> socket.socket:
        """Wait until the backend stands here; gives the connection that holds it."""
        connection, _ = self.listener.accept()
        connection.settimeout(60)
        assert connection.recv(100) == word
        return connection


def release(connection: socket.socket) -> None:
    with connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b"released"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    site = tmp_path / "site"
    site.mkdir()
    (site / "gated.py").write_text(GATED)
    info = site / "gated-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gated\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[themis]\ngated = gated\n")
    made = Gate()
    with made.listener:
        yield made


@contextlib.contextmanager
def serve(folder: Path, gate: Gate, server: str = "") -> Iterator[subprocess.Popen[str]]:
    (folder / "themis.toml").write_text(
        f'[server]\nport = 0\n{server}\n[models.m]\nbackend = "gated"\npreload = true\n'
    )
    environment = {"PYTHONPATH": str(folder / "site"), "GATE": str(gate.port)}
    with subprocess.Popen(
        [sys.executable, "-m", "themis_core.cli", "serve"],
        cwd=folder,
        env=clean_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_a_model_is_loading(tmp_path: Path, gate: Gate, number: signal.Signals) -> None:
    with serve(tmp_path, gate) as process:
        with gate.reached(b"load") as connection:
            process.send_signal(number)
            assert connection.recv(100) == b""  # Cancelled; nobody has let it through.
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "closed\n", "")


def url_of(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stderr is not None
    found = re.search(r"http://([\d.]+):(\d+)", process.stderr.readline())
    assert found is not None
    return found[1], int(found[2])


@contextlib.contextmanager
def asking(address: tuple[str, int]) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=60)) as connection:
        body = json.dumps({"model": "m", "prompt": "hi", "stream": True})
        headers = {"content-type": "application/json", "connection": "close"}
        connection.request("POST", "/v1/completions", body, headers)
        with connection.getresponse() as response:
            yield response


def wait_until_refused(address: tuple[str, int]) -> None:
    while True:
        try:
            socket.create_connection(address, timeout=60).close()
        except ConnectionError:
            return


def test_running_requests_end_first(tmp_path: Path, gate: Gate) -> None:
    with serve(tmp_path, gate) as process:
        release(gate.reached(b"load"))
        address = url_of(process)
        with asking(address) as response:
            holding = gate.reached(b"generate")
            process.send_signal(signal.SIGTERM)
            wait_until_refused(address)
            release(holding)
            text = response.read().decode()
        out, err = process.communicate(timeout=60)
    assert "first" in text
    assert " last" in text
    assert "error" not in text
    assert (process.returncode, out, err) == (0, "closed\n", "")


def test_but_no_longer_than_their_grace(tmp_path: Path, gate: Gate) -> None:
    with serve(tmp_path, gate, server="shutdown_grace = 0") as process:
        release(gate.reached(b"load"))
        with asking(url_of(process)) as response, gate.reached(b"generate") as holding:
            process.send_signal(signal.SIGTERM)
            assert holding.recv(100) == b""
            text = response.read().decode()
        out, err = process.communicate(timeout=60)
    assert "first" in text
    assert " last" not in text
    assert "error" in text
    assert (process.returncode, out) == (0, "closed\n")
    assert "Traceback" not in err
