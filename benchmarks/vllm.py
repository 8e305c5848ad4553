"""What each way to vLLM costs: `python -m benchmarks.vllm`.

`streams`: many streams at once from a fast fake server through one Themis process, beside a bare
aiohttp client. `overhead` (needs vLLM): one client, the time of an answer of one token and of each
further token, over in-process `AsyncLLM`; bare aiohttp and grpcio clients beside them. Every round
measures all in another order, and ratios are taken within a round. uvloop on our side.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import uvloop

from benchmarks import vllm_paths as paths
from benchmarks.machine import commit, machine
from benchmarks.vllm_paths import Client

OUT = Path(__file__).parent / "results" / "vllm.json"
TARGETS = {
    "shm over AsyncLLM: at most": 1.1,
    "unix over AsyncLLM: at most": 1.15,
    "HTTP over bare aiohttp, gRPC over bare grpcio: at most": 1.1,
    "32 HTTP streams through one process, tokens/s: at least": 10_000,
}
# What each is compared with.
OVER = {"http": "bare aiohttp", "grpc": "bare grpcio"}


async def streams(rounds: int, clients: int, tokens: int, seed: int) -> dict[str, Any]:
    """Tokens per second of all clients together, and CPU seconds of this process for each 1,000."""
    found: dict[str, list[tuple[float, float]]] = {}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(paths.upstream())
        named: dict[str, Client] = {
            "bare aiohttp": await stack.enter_async_context(paths.bare_http(url)),
            "http": await stack.enter_async_context(paths.of_settings(endpoint=url)),
            "http+tokenizer": await stack.enter_async_context(
                paths.of_settings(endpoint=url, tokenizer=paths.MODEL)
            ),
        }
        for client in named.values():
            await client.answer(tokens)
        order = list(named)
        for number in range(rounds):
            random.Random(seed + number).shuffle(order)
            for name in order:
                wall, cpu = time.perf_counter(), time.process_time()
                work = (named[name].answer(tokens) for _ in range(clients))
                counts = await asyncio.gather(*work)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                total = sum(counts)
                if total != clients * tokens:
                    raise click.ClickException(f"{name}: {total} tokens of {clients * tokens}")
                found.setdefault(name, []).append((total / wall, 1000 * cpu / total))
    return {
        name: {
            "tokens_per_second": round(statistics.median(rate for rate, _ in each)),
            "cpu_seconds_per_1000": round(statistics.median(cpu for _, cpu in each), 4),
        }
        for name, each in found.items()
    }


async def overhead(rounds: int, calls: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """For each round and way: medians in milliseconds of one token, and of each further one."""
    with tempfile.TemporaryDirectory(prefix="vllm-") as name:
        async with AsyncExitStack() as stack:
            named = await _connected(stack, Path(name))
            for client in named.values():
                for count in (1, tokens, 1):
                    await client.answer(count)
            return [
                await _round(named, calls, tokens, random.Random(seed + number))
                for number in range(rounds)
            ]


async def _connected(stack: AsyncExitStack, folder: Path) -> dict[str, Client]:
    http, grpc = paths.free_port(), paths.free_port()
    for port, more in ((http, []), (grpc, ["--grpc"])):
        command = paths.serve_command(port, *more)
        log = folder / f"{port}.log"
        click.echo(f"starting {' '.join(command[:3])} {' '.join(more)}", err=True)
        await stack.enter_async_context(paths.process(command, partial(paths.listening, port), log))
    bare, hosted = await stack.enter_async_context(paths.in_process())
    found: dict[str, Client] = {"AsyncLLM": bare, "vllm_engine": hosted}
    for scheme in ("shm", "unix"):
        url = f"{scheme}://{folder}/{scheme}.sock"
        config = folder / f"{scheme}.toml"
        config.write_text(_toml())
        command = [sys.executable, "-m", "themis_core.cli", "worker", "-c", str(config)]
        socket = folder / f"{scheme}.sock"

        async def ready(socket: Path = socket) -> bool:
            return socket.exists()  # noqa: ASYNC240 - nothing else runs yet.

        await stack.enter_async_context(
            paths.process([*command, "--listen", url], ready, folder / f"{scheme}.log")
        )
        found[scheme] = await stack.enter_async_context(paths.of_settings(endpoint=url))
    url, target = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
    found["bare aiohttp"] = await stack.enter_async_context(paths.bare_http(url))
    found["http"] = await stack.enter_async_context(paths.of_settings(endpoint=url))
    found["http+tokenizer"] = await stack.enter_async_context(
        paths.of_settings(endpoint=url, tokenizer=paths.MODEL)
    )
    found["bare grpcio"] = await stack.enter_async_context(paths.bare_grpc(target))
    found["grpc"] = await stack.enter_async_context(paths.of_settings(endpoint=f"grpc://{target}"))
    return found


def _toml() -> str:
    inner = paths.ENGINE["engine"]
    lines = ["[models.large]", 'backend = "vllm_engine"']
    plain = {key: value for key, value in paths.ENGINE.items() if key != "engine"}
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    lines += ["[models.large.engine]"]
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in inner.items())])


async def _round(
    named: dict[str, Client], calls: int, tokens: int, chance: random.Random
) -> dict[str, Any]:
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in named}
    for _ in range(calls):
        # Call by call in another order: a slow second of the host hits all of them.
        for name in chance.sample(list(named), len(named)):
            one = await _timed(named[name], 1)
            times[name][0].append(one)
            times[name][1].append((await _timed(named[name], tokens) - one) / (tokens - 1))
    return {
        name: {
            "first_ms": 1000 * statistics.median(first),
            "next_ms": 1000 * statistics.median(later),
        }
        for name, (first, later) in times.items()
    }


async def _timed(client: Client, tokens: int) -> float:
    start = time.perf_counter()
    count = await client.answer(tokens)
    if count != tokens:
        raise click.ClickException(f"{count} tokens of {tokens}")
    return time.perf_counter() - start


def summary(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, and the median of the ratios within them."""
    found = {}
    for name in rounds[0]:
        row = {
            key: round(statistics.median(r[name][key] for r in rounds), 3)
            for key in ("first_ms", "next_ms")
        }
        bare = OVER.get(name.partition("+")[0])
        for other in ("AsyncLLM", bare) if bare else ("AsyncLLM",):
            for key in ("first_ms", "next_ms"):
                ratios = [r[name][key] / r[other][key] for r in rounds]
                row[f"{key[:-3]}_over_{other}"] = round(statistics.median(ratios), 3)
        found[name] = row
    return found


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--calls", type=click.IntRange(min=1), default=40, show_default=True, help="A round.")
@click.option("--tokens", type=click.IntRange(min=2), default=33, show_default=True)
@click.option("--clients", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--stream-tokens", type=click.IntRange(min=2), default=2000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--only", type=click.Choice(["streams", "overhead"]), help="Default: both.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
def vllm(
    rounds: int,
    calls: int,
    tokens: int,
    clients: int,
    stream_tokens: int,
    seed: int,
    only: str | None,
    out: Path,
) -> None:
    """The ways to vLLM, beside bare clients."""
    data: dict[str, Any] = {"machine": machine(), "commit": commit(), "targets": TARGETS}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if only in (None, "streams"):
            data["streams"] = runner.run(streams(rounds, clients, stream_tokens, seed))
        if only in (None, "overhead"):
            if importlib.util.find_spec("vllm") is None:
                raise click.ClickException("vLLM is not installed: see `nox -s vllm`.")
            os.environ.update(paths.QUIET)
            measured = runner.run(overhead(rounds, calls, tokens, seed))
            data["overhead"] = summary(measured)
            data["rounds"] = measured
    out.write_text(json.dumps(data, indent=2) + "\n")
    shown = {key: data[key] for key in ("streams", "overhead") if key in data}
    click.echo(json.dumps(shown, indent=2))


if __name__ == "__main__":
    vllm()
