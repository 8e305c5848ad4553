"""`themis worker`: one configured model behind a URL, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal

import click

from themis_core.cli.options import config_option, model_option
from themis_core.config import load
from themis_core.config.secrets import resolve
from themis_core.errors import ModelNotFound
from themis_core.plugins import Registry, make
from themis_core.worker.host import HostOptions, host, new_event_loop
from themis_core.worker.making import transport_for


@click.command()
@config_option
@model_option
@click.option(
    "--listen",
    "url",
    required=True,
    metavar="URL",
    help="Where clients reach it, such as shm:///run/user/1000/themis/a.sock.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds that running requests have when it is told to stop.",
)
def worker(config_path: str | None, model: str, url: str, drain: float) -> None:
    """Host a model for other processes. Ctrl-C (or SIGTERM) stops, politely."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_worker(config_path, model, url, drain))


async def _worker(config_path: str | None, model: str, url: str, drain: float) -> None:
    registry = Registry()
    config = load(config_path, registry)
    name = model or config.default
    if name not in config.models:
        known = ", ".join(config.models)
        raise ModelNotFound(
            f"No model is called {name!r}.", field="model", remedy=f"Configured: {known}."
        )
    found = config.models[name]
    transport = transport_for(registry, url)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def ready(where: str) -> None:
        click.echo(f"Themis hosts {name} at {where} (Ctrl-C stops)", err=True)

    settings = resolve(found.settings, f"models.{name}", config.places, config.source)
    backend = make(found.descriptor, settings)
    await host(backend, transport, url, stop, ready, HostOptions(drain_timeout=drain))
