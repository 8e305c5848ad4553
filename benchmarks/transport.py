"""Transports beside HTTP/JSON, ZeroMQ and bare gRPC, in one run: `python -m benchmarks transport`.

Every round measures all in another order, so that a slow minute of the host hits all of them;
ratios are taken within a round. Latencies are pooled over the rounds. uvloop on both sides.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import uvloop

from benchmarks import transport_yardsticks as yardsticks
from benchmarks.machine import commit, machine
from benchmarks.transport_yardsticks import Client, transport_of
from themis_core.contracts import Backend
from themis_core.worker import bench
from themis_core.worker.bench import STREAMS

OUT = Path(__file__).parent / "results" / "transport.json"
BARE = "bare grpcio stream"
YARDSTICKS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "aiohttp + uvicorn": ("http", yardsticks.aiohttp_client),
    "httpx + uvicorn": ("http", yardsticks.httpx_client),
    "pyzmq": ("zmq", yardsticks.zmq_client),
    BARE: ("grpc", yardsticks.grpc_client),
}
PACKAGES = ("aiohttp", "grpcio", "httpx", "msgspec", "pyzmq", "uvicorn", "uvloop")
OURS = ("unix", "shm", "grpc")
TARGETS = {
    "unary p50 of shm and unix, microseconds: at most": 100,
    "32 streams one by one, events/s: at least": 200_000,
    "32 streams batched, events/s: at least": 500_000,
    "matrix in place over shm, ms: at most": 1.0,
    "grpc unary over a bare grpcio stream: at most": 1.2,
}


class Themis:
    """A Themis client, measured like the yardsticks."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def unary(self) -> None:
        await bench.unary(self.backend, 1)

    async def stream(self, tokens: int) -> None:
        await bench.stream(self.backend, tokens, "burst")

    async def matrix(self) -> None:
        await bench.matrix(self.backend, "place")


@asynccontextmanager
async def themis(scheme: str, folder: str, *, batch: bool = True) -> AsyncIterator[Themis]:
    url = f"{scheme}://{folder}/themis.sock"
    module = "themis_core.worker.bench" if batch else "benchmarks.transport_yardsticks"
    async with bench.worker(transport_of(scheme), url, module) as backend:
        yield Themis(backend)


@asynccontextmanager
async def yardstick(name: str, folder: str) -> AsyncIterator[Client]:
    kind, connect = YARDSTICKS[name]
    path = f"{folder}/{kind}.sock"
    command = [sys.executable, "-m", "benchmarks.transport_yardsticks", kind, path]
    process = await asyncio.to_thread(subprocess.Popen, command, stdin=subprocess.PIPE)
    try:
        while not await asyncio.to_thread(os.path.exists, path):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with connect(path) as client:
            yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.to_thread(process.wait)


async def timed(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def figures(client: Client, calls: int) -> dict[str, Any]:
    """The four loads. Latencies in microseconds, rates in events/s, the matrix in milliseconds."""
    for _ in range(max(20, calls // 10)):
        await client.unary()
    unary = [1e6 * await timed(client.unary()) for _ in range(calls)]
    burst = [1e4 * await timed(client.stream(100)) for _ in range(max(5, calls // 50))]
    tokens = max(20, calls // 8)
    streams = asyncio.gather(*(client.stream(tokens) for _ in range(STREAMS)))
    seconds = await timed(streams)
    matrices = [1e3 * await timed(client.matrix()) for _ in range(7)]
    return {
        "unary": unary,
        "burst_us_per_token": statistics.median(burst),
        "streams_per_second": STREAMS * tokens / seconds,
        "matrix_ms": statistics.median(matrices[2:]),
    }


async def measure_one(name: str, calls: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="themis-") as folder:
        if name in OURS:
            async with themis(name, folder) as client:
                found = await figures(client, calls)
                tokens = max(20, calls // 4)
                seconds = await timed(bench.streams(client.backend, tokens))
                found["stepped_per_second"] = STREAMS * tokens / seconds
                copied = [1e3 * await bench.matrix(client.backend, "copy") for _ in range(7)]
                found["matrix_copied_ms"] = statistics.median(copied[2:])
            async with themis(name, folder, batch=False) as client:
                seconds = await timed(bench.streams(client.backend, tokens))
                found["single_per_second"] = STREAMS * tokens / seconds
            return found
        async with yardstick(name, folder) as client_:
            return await figures(client_, calls if "httpx" not in name else calls // 4)


async def run(rounds: int, calls: int, seed: int) -> list[dict[str, dict[str, Any]]]:
    names = [*OURS, *YARDSTICKS]
    order = random.Random(seed)
    found = []
    for number in range(rounds):
        order.shuffle(names)
        row = {}
        for name in names:
            row[name] = await measure_one(name, calls)
            click.echo(f"round {number + 1}: {name}", err=True)
        found.append(row)
    return found


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, and the ratios to `unix` within each."""
    found = {}
    for name in rounds[0]:
        pooled = sorted(value for row in rounds for value in row[name]["unary"])
        p50s = [statistics.median(row[name]["unary"]) for row in rounds]
        base = [statistics.median(row["unix"]["unary"]) for row in rounds]
        entry = {
            "unary_p50_us": pooled[len(pooled) // 2],
            "unary_p99_us": pooled[len(pooled) * 99 // 100],
            "unary_over_unix": statistics.median(
                mine / unix for mine, unix in zip(p50s, base, strict=True)
            ),
        }
        if name == "grpc":
            entry["unary_over_bare"] = statistics.median(
                mine / statistics.median(row[BARE]["unary"])
                for mine, row in zip(p50s, rounds, strict=True)
            )
        for key in rounds[0][name]:
            if key != "unary":
                entry[key] = statistics.median(row[name][key] for row in rounds)
        found[name] = entry
    return dict(sorted(found.items(), key=lambda item: item[1]["unary_p50_us"]))


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        "| transport | unary p50 / p99 µs | over unix | burst µs/token | 32 streams k events/s: "
        "free running / one by one / per step | 16 MiB ms: copied / in place |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in found.items():
        streams = " / ".join(
            f"{row[key] / 1000:.0f}" if key in row else "-"
            for key in ("streams_per_second", "single_per_second", "stepped_per_second")
        )
        copied = f"{row['matrix_copied_ms']:.2f}" if "matrix_copied_ms" in row else "-"
        lines.append(
            f"| {name} | {row['unary_p50_us']:.0f} / {row['unary_p99_us']:.0f} "
            f"| {row['unary_over_unix']:.2f} | {row['burst_us_per_token']:.2f} | {streams} "
            f"| {copied} / {row['matrix_ms']:.2f} |"
        )
    if "grpc" in found:
        ratio = found["grpc"]["unary_over_bare"]
        lines.append(f"\ngrpc takes {ratio:.2f} times as long as {BARE} for a unary call.")
    return "\n".join(lines)


def draw(data: dict[str, Any], path: Path) -> None:
    """Write an SVG: latency of a call, and events per second of 32 streams."""
    # Loaded here: it takes a second, and measuring does not need it.
    import matplotlib as mpl  # type: ignore[import-not-found, unused-ignore]

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "themis", "font.size": 9, "axes.spines.top": False})
    mpl.rcParams["axes.spines.right"] = False
    from matplotlib import pyplot as plt

    summary = data["summary"]
    names = [*reversed(summary)]  # The first is drawn at the bottom.
    colours = ["#2563eb" if name in OURS else "#6b7280" for name in names]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.5, 3.4), layout="constrained", sharey=True
    )
    p50 = [summary[name]["unary_p50_us"] for name in names]
    left.bar_label(left.barh(names, p50, color=colours), fmt="%.0f", padding=3, fontsize=8)
    left.plot([summary[name]["unary_p99_us"] for name in names], names, "|", color="#111827", ms=8)
    rates = [
        max(row.get("stepped_per_second", 0), row["streams_per_second"]) / 1000
        for row in map(summary.get, names)
    ]
    right.bar_label(right.barh(names, rates, color=colours), fmt="%.0f", padding=3, fontsize=8)
    for axes, title in (
        (left, "A call, microseconds (less is better; log): p50, line p99"),
        (right, "32 streams, 1000 events per second (more is better; log)"),
    ):
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xscale("log")
    figure.suptitle(data["title"], fontsize=10, x=0.01, ha="left")
    host = data["machine"]
    figure.supxlabel(f"{host['cpu']}, {host['cores']} cores", fontsize=7, color="#6b7280")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--calls", type=click.IntRange(min=100), default=2000, show_default=True)
@click.option("--quick", is_flag=True, help="One round with fewer calls: a trial, no result.")
@click.option("--seed", type=int, default=1)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
def main(rounds: int, calls: int, quick: bool, seed: int, out: Path) -> None:
    """Measure all transports and yardsticks; writes a file, and a plot beside it."""
    if quick:
        rounds, calls = 1, 100
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(rounds, calls, seed))
    result = summary(found)
    for row in found:
        for entry in row.values():
            entry["unary"] = round(statistics.median(entry["unary"]), 1)
    data = {
        "name": "transport",
        "title": "Transports: 512 token ids there, 100 back",
        "commit": commit(),
        "machine": {**machine(), "load": os.getloadavg()},
        "versions": {name: version(name) for name in PACKAGES},
        "setup": {"rounds": rounds, "calls": calls, "quick": quick},
        "targets": TARGETS,
        "summary": result,
        "rounds": found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(data, indent=1) + "\n")
    draw(data, out.with_suffix(".svg"))
    click.echo(f"{table(result)}\n{out}")


if __name__ == "__main__":
    main()
