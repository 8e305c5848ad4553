"""`themis serve`: the front door, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import click

import themis_core
from themis_core.cli.options import config_option
from themis_core.cli.pid_file import Outcome, PidFile
from themis_core.config import load, resolved, server_config
from themis_core.errors import ThemisError
from themis_core.hooks import FrontDoor
from themis_core.plugins import Registry, make
from themis_core.runtime import Runtime

_log = logging.getLogger("themis.serve")


@click.command()
@config_option
@click.option(
    "--pid-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the process id here, for `themis reload --pid-file`.",
)
@click.option("--host", help="The address to listen on, over the configuration's.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="The port, over the configuration's; 0 takes a free one.",
)
def serve(
    config_path: str | None, pid_file: Path | None, host: str | None, port: int | None
) -> None:
    """Serve the configured models over HTTP. Ctrl-C (or SIGTERM) stops, politely.

    SIGHUP, or `themis reload`, reads the configuration again; a bad one changes nothing.
    """
    with (
        nullcontext() if pid_file is None else PidFile(pid_file) as written,
        asyncio.Runner(loop_factory=_new_event_loop) as runner,
    ):
        runner.run(_serve(config_path, host, port, written))


async def _serve(
    config_path: str | None, host: str | None, port: int | None, pid_file: PidFile | None
) -> None:
    # Before anything else: a model may take minutes to load.
    stop = _stop_signal()
    hang_up = _reload_signal()
    registry = Registry()
    config = resolved(load(config_path, registry))  # All problems, the server's among them.
    server = config.server or server_config(config_path, registry)
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
            if pid_file is not None:
                pid_file.ready()
            reloading = asyncio.create_task(_reload_when_told(hang_up, runtime, pid_file))
            try:
                await _unless(stop, door.wait())
            finally:
                reloading.cancel()
                await asyncio.wait([reloading])
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


def _reload_signal() -> asyncio.Event:
    hang_up = asyncio.Event()
    with suppress(NotImplementedError, AttributeError):  # Windows has no such signal.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up.set)
    return hang_up


async def _reload_when_told(
    hang_up: asyncio.Event, runtime: Runtime, pid_file: PidFile | None
) -> None:
    """Each SIGHUP reloads; those that come meanwhile make one more reload after it."""
    while True:
        await hang_up.wait()
        hang_up.clear()
        try:
            report = await runtime.reload()
        except ThemisError as error:
            _log.error("The new configuration is refused, the old one stays in force: %s", error)
            outcome = Outcome(ok=False, code=error.code, message=str(error))
        except Exception as error:  # noqa: BLE001 - a plugin's; the server must live on.
            _log.exception("The reload failed, the old configuration stays in force.")
            outcome = Outcome(ok=False, code="internal", message=repr(error))
        else:
            level = logging.WARNING if report.restart else logging.INFO
            _log.log(level, "The configuration was reloaded; %s.", report)
            outcome = Outcome(ok=True, message=str(report), restart=report.restart)
        if pid_file is not None:
            pid_file.reloaded(outcome)


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
