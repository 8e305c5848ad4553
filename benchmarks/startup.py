"""How long Themis takes to start: `import themis_core`, `themis --help`, and `python -c pass`.

Each command runs in processes of its own, in turn with the bare interpreter, so that what disturbs
one disturbs the others. What counts is the median of the differences within a round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import commit, machine

# name → (arguments of the interpreter, milliseconds more than `pass` that are allowed)
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": (["-c", "pass"], None),
    "import themis_core": (["-c", "import themis_core"], 60.0),
    "themis --help": (["-m", "themis_core.cli", "--help"], 200.0),
}
BASE = "python -c pass"
_SHOWN = 12  # Modules that take longest.


def measured(rounds: int) -> dict[str, Any]:
    """Milliseconds of all commands, the goals, and what was imported, ready for JSON."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for arguments, _ in COMMANDS.values():
        _run(arguments)  # The first one reads from the disk, and is not counted.
    for _ in range(rounds):
        for name, (arguments, _) in COMMANDS.items():
            times[name].append(_run(arguments))
    rows = [_row(name, goal, times) for name, (_, goal) in COMMANDS.items()]
    return {
        "name": "startup",
        "title": "Starting, in milliseconds more than `python -c pass`",
        "commit": commit(),
        "machine": machine(),
        "plugins": _plugins(),
        "rounds": rounds,
        "summary": rows,
        "imports": {name: imports(args) for name, (args, _) in COMMANDS.items()},
    }


def imports(arguments: list[str]) -> dict[str, Any]:
    """What `-X importtime` tells: what must not be there, and the slowest modules themselves."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = {}
    for line in result.stderr.splitlines():
        if line.startswith("import time:") and line.count("|") == 2:
            own, _, name = line.removeprefix("import time:").split("|")
            if own.strip().isdigit():
                found[name.strip()] = int(own)
    slowest = sorted(found, key=found.__getitem__, reverse=True)[:_SHOWN]
    return {
        "modules": len(found),
        "unwanted": sorted(name for name in found if _unwanted(name)),
        "slowest_us": {name: found[name] for name in slowest},
    }


def _unwanted(module: str) -> bool:
    top = module.partition(".")[0]
    return top in {"numpy", "asyncio"} or (top.startswith("themis_") and top != "themis_core")


def _run(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


def _row(name: str, goal: float | None, times: dict[str, list[float]]) -> dict[str, Any]:
    more = [mine - bare for mine, bare in zip(times[name], times[BASE], strict=True)]
    row: dict[str, Any] = {
        "command": name,
        "median_ms": round(statistics.median(times[name]), 1),
        "fastest_ms": round(min(times[name]), 1),
    }
    if goal is not None:
        median = round(statistics.median(more), 1)
        row |= {"more_ms": median, "goal_ms": goal, "met": median < goal}
    return row


def _plugins() -> list[str]:
    """The distributions that were installed, as metadata has them."""
    return sorted(
        f"{distribution.name} {distribution.version}"
        for distribution in metadata.distributions()
        if any(e.group == "themis" for e in distribution.entry_points)
    )


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "results",
    help="The folder of startup.json.",
)
def startup(rounds: int, out: Path) -> None:
    """Starting: `import themis_core` and `themis --help`, beside `python -c pass`."""
    from benchmarks.report import save

    data = measured(rounds)
    click.echo(f"with {', '.join(data['plugins'])}")
    for row in data["summary"]:
        told = f"{row['command']:20} {row['median_ms']:7.1f} ms"
        if "goal_ms" in row:
            told += f"  {row['more_ms']:6.1f} ms more (goal: {row['goal_ms']:g})"
            told += "" if row["met"] else "  MISSED"
        click.echo(told)
    for name, found in data["imports"].items():
        unwanted = ", ".join(found["unwanted"]) or "no plugin, no engine, no numpy, no asyncio"
        click.echo(f"{name}: {found['modules']} modules imported; {unwanted}")
    click.echo(str(save(data, out)))
