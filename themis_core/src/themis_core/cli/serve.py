"""`themis serve`: the front door, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import click

import themis_core
from themis_core.cli.options import config_option
from themis_core.config import server_config
from themis_core.hooks import FrontDoor
from themis_core.plugins import Registry, make


@click.command()
@config_option
@click.option("--host", help="The address to listen on, over the configuration's.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The port, over the configuration's; 0 takes a free one.",
)
def serve(config_path: str | None, host: str | None, port: int | None) -> None:
    """Serve the configured models over HTTP. Ctrl-C (or SIGTERM) stops, politely."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(_serve(config_path, host, port))


async def _serve(config_path: str | None, host: str | None, port: int | None) -> None:
    # Before anything else: a model may take minutes to load.
    stop = _stop_signal()
    registry = Registry()
    server = server_config(config_path, registry)
    runtime = themis_core.open(config_path, registry=registry)
    try:
        await _unless(stop, runtime.start())
        if stop.is_set():
            return
        door: FrontDoor = make(
            server.descriptor,
            server.settings,
            runtime,
            server.keys.host if host is None else host,
            server.keys.port if port is None else port,
        )
        try:
            await door.start()
            names = ", ".join(model.name for model in runtime.models())
            click.echo(f"Themis serves {names} at {door.url} (Ctrl-C stops)", err=True)
            await _unless(stop, door.wait())
        finally:
            # Lets the running requests end first, as long as its settings say.
            await door.aclose()
    finally:
        await runtime.aclose()


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead.
            loop.add_signal_handler(number, stop.set)
    return stop


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, but cancel it when told to stop. Returns when it has ended, raises its errors."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait([working, stopping])
    if not working.cancelled():
        working.result()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
