"""`themis bench transport`: what a boundary costs on this host, and which transport to take."""

from __future__ import annotations

import asyncio
import json
import tempfile

import click
import msgspec

from themis_core.cli.options import json_option
from themis_core.plugins import Registry
from themis_core.worker import bench as measuring
from themis_core.worker.bench import Figures
from themis_core.worker.host import new_event_loop
from themis_core.worker.making import find_transport

# Where a bench worker listens; `{folder}` is a private one.
_URLS = {
    "unix": "unix://{folder}/bench.sock",
    "shm": "shm://{folder}/bench.sock",
    "grpc": "grpc://127.0.0.1:0",
}


@click.group()
def bench() -> None:
    """Measure this host."""


@bench.command()
@click.option(
    "--rounds",
    type=click.IntRange(min=100),
    default=2000,
    show_default=True,
    help="Unary calls for each transport; the other measurements in proportion.",
)
@json_option
def transport(rounds: int, as_json: bool) -> None:
    """Measure the installed transports. Close what else needs the processor."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        found = runner.run(_measure(rounds))
    choice, why = recommend(found)
    if as_json:
        plain = {name: msgspec.to_builtins(figures) for name, figures in found.items()}
        click.echo(json.dumps({"transports": plain, "recommended": choice, "why": why}))
        return
    click.echo(table(found))
    click.echo(f"\nRecommended here: {choice}. {why}")


async def _measure(rounds: int) -> dict[str, Figures]:
    registry = Registry()
    found = {}
    inline = measuring.BenchBackend()
    found["inline"] = await measuring.measure(inline, rounds)
    for scheme, url in _URLS.items():
        if scheme not in registry.names:
            continue
        with tempfile.TemporaryDirectory(prefix="themis-") as folder:
            async with measuring.worker(
                find_transport(registry, scheme), url.format(folder=folder)
            ) as backend:
                found[scheme] = await measuring.measure(backend, rounds)
    return found


def recommend(found: dict[str, Figures]) -> tuple[str, str]:
    """The transport for workers on this host, and why."""
    shm, unix = found.get("shm"), found.get("unix")
    if shm is None or unix is None:
        return "inline", "Install themis-shm-transport to run models in workers."
    if shm.matrix_in_place * 2 < unix.matrix_in_place:
        times = unix.matrix_in_place / shm.matrix_in_place
        return "shm", f"What is large arrives {times:.0f} times as fast; tokens cost the same."
    return "unix", "Shared memory gains nothing on this host."


def table(found: dict[str, Figures]) -> str:
    """The figures as text."""
    lines = [
        f"{'':8}{'unary p50':>11}{'p99':>9}{'burst':>9}{'32 streams':>12}{'CPU/token':>11}"
        f"{'16 MiB':>10}{'in place':>10}",
        f"{'':8}{'us':>11}{'us':>9}{'us/tok':>9}{'ktokens/s':>12}{'us':>11}{'ms':>10}{'ms':>10}",
    ]
    for name, f in found.items():
        lines.append(
            f"{name:8}{f.unary_p50:11.0f}{f.unary_p99:9.0f}{f.burst_per_token:9.2f}"
            f"{f.streams_per_second / 1000:12.0f}{f.cpu_per_token:11.2f}"
            f"{f.matrix_copied / 1000:10.2f}{f.matrix_in_place / 1000:10.2f}"
        )
    return "\n".join(lines)
