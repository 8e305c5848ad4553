"""Starting a server as a child process, and stopping it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import Peer, Setup

_START_SECONDS = 120
_STOP_SECONDS = 15


class ServerFailed(Exception):
    """A server did not start; the message has the end of its output."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    peer: Peer
    port: int
    pid: int


@asynccontextmanager
async def running(peer: Peer, setup: Setup) -> AsyncIterator[Server]:
    """Start a server, wait until it answers, and stop it after the block."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as probe:
        folder = Path(name)
        port = probe.getsockname()[1]
        probe.close()
        log = folder / "output.log"
        # Nothing of this machine's own configuration may change what is measured.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("THEMIS_")}
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *peer.command(setup, port, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        try:
            if not await _answers(peer, port, process):
                tail = log.read_text("utf-8", "replace")[-2000:]
                code = process.returncode
                raise ServerFailed(f"{peer.name} did not start (exit code {code}):\n{tail}")
            yield Server(peer, port, process.pid)
        finally:
            await _stop(process)


async def _answers(peer: Peer, port: int, process: Process) -> bool:
    """Wait until the server is ready. False if it ends, or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.returncode is None:
        with suppress(OSError):  # It does not listen yet.
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {peer.ready_path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return True
        await asyncio.sleep(0.2)
    return False


async def _stop(process: Process) -> None:
    with suppress(ProcessLookupError):  # It has ended by itself.
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
