"""Inside the worker process: load a model, serve it, and end when told to, or with the parent."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec

from themis_core.config.secrets import resealed, without
from themis_core.config.structure import secrets_of
from themis_core.contracts import Backend, BackendServer, Transport
from themis_core.errors import ModelLoadFailed, ThemisError
from themis_core.hooks import BackendPlugin
from themis_core.plugins import Registry, make
from themis_core.protocol.failures import to_failure
from themis_core.worker.making import transport_for
from themis_core.worker.spec import Report, Spec

_PR_SET_PDEATHSIG = 1
_HEALTH_INTERVAL = 0.2
_SPEC_LIMIT = 1 << 26  # Bytes of the line that says what to do, with all settings of the model.


class HostOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`drain_timeout`: seconds that running requests have when the worker is told to stop."""

    drain_timeout: float = 10.0


async def host(
    backend: Backend,
    transport: Transport,
    url: str,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    options: HostOptions | None = None,
) -> None:
    """Start a backend and serve it until `stop`; then drain, and close both.

    Raises what starting or serving raises, and why the backend has failed, if it has for good.
    """
    options = options or HostOptions()
    try:
        await backend.start()
        server = await transport.serve(backend, url)
        try:
            on_ready(server.url)
            await _until_stopped(backend, stop)
            await _drain(server, options.drain_timeout)
        finally:
            await server.aclose()
    finally:
        await backend.aclose()


async def _until_stopped(backend: Backend, stop: asyncio.Event) -> None:
    """Raises the error of a backend that has failed for good: a new process must take over."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(_HEALTH_INTERVAL):
                await stop.wait()
                return
        backend.info  # noqa: B018 - it raises once the backend is of no more use.


async def _drain(server: BackendServer, patience: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            await server.drain()


def main(control_fd: int, parent: int) -> int:
    """The whole life of a supervised worker. Returns the exit code."""
    die_with(parent)
    # Ctrl-C in a terminal goes to the parent too, which stops this process in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=control_fd)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_supervised(control))


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, whatever ends that (Linux).

    Elsewhere the end of the control socket has to do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # It ended before the line above.
            os._exit(1)


async def _supervised(control: socket.socket) -> int:
    control.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=control, limit=_SPEC_LIMIT)
    spec = msgspec.json.decode(await reader.readline(), type=Spec)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def report(message: Report) -> None:
        writer.write(msgspec.json.encode(message) + b"\n")

    loaded = asyncio.Event()

    def ready(url: str) -> None:
        loaded.set()
        report(Report(url=url))

    parent = asyncio.create_task(_until_the_end(reader, stop))
    try:
        serving = asyncio.create_task(_serve(spec, stop, ready))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loaded.is_set():  # The parent may give up while the model loads.
            serving.cancel()
        await asyncio.wait([serving])
        if not serving.cancelled():
            serving.result()
    except ThemisError as error:
        report(Report(failure=to_failure(error)))
        with suppress(OSError):
            await writer.drain()
        return 1
    finally:
        parent.cancel()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return 0


async def _serve(spec: Spec, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
    registry = Registry()
    registry.obey_lock(spec.lock)
    descriptor = registry.find("backends", spec.backend, BackendPlugin)
    try:
        settings = msgspec.convert(spec.settings, descriptor.settings)
    except msgspec.ValidationError as error:
        told = without(str(error), secrets_of(descriptor.settings, spec.settings))
        # Not its cause, which would tell them.
        raise ModelLoadFailed(f"The worker cannot read the model's settings: {told}.") from None
    registry.load_used(descriptor, settings)
    backend: Backend = make(descriptor, resealed(settings))
    await host(backend, transport_for(registry, spec.url), spec.url, stop, on_ready)


async def _until_the_end(reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
    """The parent says nothing more: the end of the control socket means stop."""
    with suppress(OSError):
        await reader.read()
    stop.set()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
