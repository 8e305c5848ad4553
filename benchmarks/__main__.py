"""The command line of the benchmarks."""

from __future__ import annotations

import asyncio
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import click

from benchmarks import model, report, tables
from benchmarks.client import WrongAnswer
from benchmarks.loads import LOADS, Load
from benchmarks.onnx_bench import onnx
from benchmarks.peers import Setup, known
from benchmarks.running import ServerFailed
from benchmarks.serving import Plan, measure
from benchmarks.startup import startup
from benchmarks.vllm import vllm

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"


def _settings(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """`kv_unified=true` becomes {"kv_unified": True}."""
    try:
        return tomllib.loads("\n".join(values))
    except tomllib.TOMLDecodeError as error:
        raise click.BadParameter(f"{' '.join(values)} is not like key=value: {error}") from None


def _counts(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """`1,8,32` becomes (1, 8, 32)."""
    if value is None:
        return None
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,8,32.") from None
    if min(counts) < 1:
        raise click.BadParameter("Each number must be at least 1.")
    return counts


_threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Threads that each server computes with.",
)
_set = click.option(
    "--set",
    "settings",
    multiple=True,
    callback=_settings,
    metavar="KEY=VALUE",
    help="A setting of Themis's model, as in themis.toml (can be repeated).",
)


_out = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default="benchmarks/results",
    help="Where the results go.",
)


@click.group()
def main() -> None:
    """Measure Themis. Close everything else that needs the processor first."""


@main.command()
@click.option(
    "--load",
    "names",
    multiple=True,
    type=click.Choice([*LOADS, "all"]),
    default=["all"],
    show_default=True,
    help="What to measure (can be repeated).",
)
@click.option("--clients", callback=_counts, help="Numbers at once, instead of the load's own.")
@_threads
@_set
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="One round with fewer requests: a trial, no result.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(known(Path()))),
    help="Measure this server (can be repeated). Without it: all of the load.",
)
@click.option(
    "--examples-server",
    "example",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="examples/server/server.py of llama-cpp-python's source distribution.",
)
@_out
def serving(
    names: tuple[str, ...],
    clients: tuple[int, ...] | None,
    threads: int,
    settings: dict[str, Any],
    rounds: int,
    quick: bool,
    only: tuple[str, ...],
    example: Path | None,
    out: Path,
) -> None:
    """Themis beside its peers, in one run, alternating; a file and a plot for each load."""
    # Ended from outside, this must still stop the servers: as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for load in LOADS.values():
        if load.name in names or "all" in names:
            plan = Plan(load, clients or load.clients, 1 if quick else rounds, quick)
            setup = _setup(load, max(plan.clients), threads, settings)
            _measure(plan, setup, only, example, out)


def _measure(
    plan: Plan, setup: Setup, only: tuple[str, ...], example: Path | None, out: Path
) -> None:
    load, there = plan.load, known(example)
    wanted = [name for name in load.peers if not only or name in only]
    left_out = [name for name in wanted if name not in there]
    peers = [there[name] for name in wanted if name in there]
    click.echo(f"{load.name}: {load.title}")
    if left_out:
        click.echo(f"Left out: {', '.join(left_out)}, which needs --examples-server.")
    if not peers:
        return
    try:
        found = asyncio.run(measure(plan, setup, peers, click.echo))
    except* (ServerFailed, WrongAnswer) as group:
        raise click.ClickException("\n".join(map(str, _flat(group)))) from None
    data = report.document(found, load, setup, peers, left_out)
    path = report.save(data, out)
    from benchmarks.plot import draw

    draw(data, path.with_suffix(".svg"))
    click.echo(f"\n{tables.table(data)}\n{path}\n")


@main.command()
@click.option(
    "--clients", callback=_counts, default="1,8,32", show_default=True, help="Numbers at once."
)
@_threads
@_set
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True)
@_out
def profile(
    clients: tuple[int, ...], threads: int, settings: dict[str, Any], tokens: int, out: Path
) -> None:
    """Where the time of an engine step goes, in this process, without HTTP."""
    from benchmarks.profile_engine import document

    setup = _setup(LOADS["unique"], max(clients), threads, settings)
    data = asyncio.run(document(setup, clients, tokens))
    click.echo(f"{tables.profile_table(data)}\n{report.save(data, out)}")


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def transport(arguments: tuple[str, ...]) -> None:
    """Transports beside HTTP/JSON, ZeroMQ and bare gRPC, in one run."""
    from benchmarks.transport import main as measure_transports

    measure_transports.main(arguments, prog_name="python -m benchmarks transport")


@main.command(name="tables")
@_out
def tables_(out: Path) -> None:
    """Write the tables of the README from the results."""
    click.echo(f"{README}: {', '.join(tables.update_readme(README, out)) or 'nothing measured'}")


def _setup(load: Load, parallel: int, threads: int, settings: dict[str, Any]) -> Setup:
    return Setup(
        model=model.ensure(load.model),
        context=load.context,
        parallel=parallel,
        threads=threads,
        reuse=load.reuse,
        settings={**load.settings, **settings},
    )


def _flat(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    parts = [_flat(e) if isinstance(e, BaseExceptionGroup) else [e] for e in group.exceptions]
    return [error for part in parts for error in part]


main.add_command(onnx)
main.add_command(startup)
main.add_command(vllm)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
