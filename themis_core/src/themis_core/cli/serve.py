"""`themis serve`: the front door, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

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
    registry = Registry()
    server = server_config(config_path, registry)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead.
            loop.add_signal_handler(number, stop.set)
    async with themis_core.open(config_path, registry=registry) as runtime:
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
            await _first(stop.wait(), door.wait())
        finally:
            await door.aclose()


async def _first(*awaitables: object) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
