"""The command line of the benchmarks."""

from __future__ import annotations

import asyncio
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import click

from benchmarks import model, report
from benchmarks.load import WrongAnswer
from benchmarks.peers import PEERS, Load, ServerFailed
from benchmarks.serving import NEW_TOKENS, PROMPT_TOKENS, Plan, measure
from benchmarks.vocabulary import prompts

RESULTS = Path(__file__).parent / "results"


def _settings(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """`kv_unified=true` becomes {"kv_unified": True}."""
    try:
        return tomllib.loads("\n".join(values))
    except tomllib.TOMLDecodeError as error:
        raise click.BadParameter(f"{' '.join(values)} is not like key=value: {error}") from None


def _counts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """`1,8,32` becomes (1, 8, 32)."""
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,8,32.") from None
    if min(counts) < 1:
        raise click.BadParameter("Each number must be at least 1.")
    return counts


_clients = click.option(
    "--clients", callback=_counts, default="1,8,32", show_default=True, help="Numbers at once."
)
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


@click.group()
def main() -> None:
    """Measure Themis. Close everything else that needs the processor first."""


@main.command()
@_clients
@_threads
@_set
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="One round with fewer requests: a trial, no result.")
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice([peer.name for peer in PEERS]),
    help="Measure this server (can be repeated). Without it: all.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default="benchmarks/results",
    help="Where the results go.",
)
def serving(
    clients: tuple[int, ...],
    threads: int,
    settings: dict[str, Any],
    rounds: int,
    quick: bool,
    names: tuple[str, ...],
    out: Path,
) -> None:
    """Themis beside llama.cpp's C++ server and llama_cpp.server, in one run, alternating."""
    peers = [peer() for peer in PEERS if not names or peer.name in names]
    load = _load(clients, threads, settings)
    plan = Plan(clients, 1 if quick else rounds, quick)
    # Ended from outside, this must still stop the servers: as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = asyncio.run(measure(plan, load, peers, click.echo))
    except* (ServerFailed, WrongAnswer) as group:
        raise click.ClickException("\n".join(map(str, _flat(group)))) from None
    data = report.document(found, load, peers)
    path = report.save(data, out)
    from benchmarks.plot import draw

    draw(data, path.with_suffix(".svg"))
    click.echo(f"\n{report.table(data)}\n{path}")


@main.command()
@_clients
@_threads
@_set
@click.option("--tokens", type=click.IntRange(min=1), default=NEW_TOKENS, show_default=True)
def profile(clients: tuple[int, ...], threads: int, settings: dict[str, Any], tokens: int) -> None:
    """Where the time of an engine step goes, in this process, without HTTP."""
    from benchmarks.profile_engine import profile as run

    load = _load(clients, threads, settings)
    for count in clients:
        texts = prompts(count, PROMPT_TOKENS, seed=count)
        click.echo(asyncio.run(run(load, texts, tokens)))


def _load(clients: tuple[int, ...], threads: int, settings: dict[str, Any]) -> Load:
    return Load(
        model=model.ensure(),
        context=2 * (PROMPT_TOKENS + NEW_TOKENS),
        parallel=max(clients),
        threads=threads,
        settings=settings,
    )


def _flat(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    parts = [_flat(e) if isinstance(e, BaseExceptionGroup) else [e] for e in group.exceptions]
    return [error for part in parts for error in part]


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
