"""`onnx`: Themis on ONNX Runtime beside onnxruntime-genai and beside Themis on llama.cpp.

In each round every contender, which is a process of its own and idle while others compute, does the
same work in turn; the next round begins with another one. A ratio compares two measurements of one
round.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import click
import msgspec

from benchmarks import model as gguf_model
from benchmarks import onnx_model
from benchmarks.machine import machine
from benchmarks.onnx_contenders import CONTENDERS, Took, Work
from benchmarks.onnx_model import Precision

PROMPT_TOKENS = 64
# Of requests one after the other: those that run together end at different times.
NEW_TOKENS = (48, 24, 64, 40, 16, 56, 32, 40)
OURS = "themis onnx"
TARGETS = {1: 1.0, 8: 2.5}
_PLAIN_TOKENS = (300, 40_000)  # Ids of words in the vocabulary.
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender with one precision under one load."""

    round: int
    precision: Precision
    contender: str
    clients: int
    seconds: float
    cpu_seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall time, the prompts' computation included."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Process:
    """A loaded contender."""

    name: str
    stdin: IO[str]
    stdout: IO[str]

    def run(self, work: Work) -> Took:
        """Have it work. Raises `ClickException` if it ends instead."""
        self.stdin.write(msgspec.json.encode(work).decode() + "\n")
        self.stdin.flush()
        line = self.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} ended; what it said is above.")
        return msgspec.json.decode(line, type=Took)


def workload(clients: int, seed: int, length: int, *, quick: bool) -> Work:
    """Requests for so many clients: three for each, one for each if `quick`."""
    chance = random.Random(seed)
    count = clients * (1 if quick else 3) + (0 if quick or clients > 1 else 5)
    prompts = [[chance.randrange(*_PLAIN_TOKENS) for _ in range(length)] for _ in range(count)]
    new = [NEW_TOKENS[i % len(NEW_TOKENS)] for i in range(count)]
    return Work(prompts, new, clients)


@contextmanager
def running(name: str, folder: Path, threads: int, clients: int) -> Iterator[Process]:
    """A contender's process, ended afterwards."""
    command = [sys.executable, "-m", "benchmarks.onnx_contenders", name, str(folder)]
    with subprocess.Popen(
        [*command, str(threads), str(clients)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise click.ClickException(f"{name} did not start; what it said is above.")
            yield Process(name, process.stdin, process.stdout)
        finally:
            process.kill()


def measure(
    precisions: Sequence[Precision],
    clients: Sequence[int],
    names: Sequence[str],
    *,
    threads: int,
    rounds: int,
    prompt_tokens: int,
    quick: bool,
) -> list[Measurement]:
    """All of it, precision by precision."""
    found = []
    for precision in precisions:
        ours = onnx_model.ensure(precision)
        # llama.cpp's file has 4 bits, so it stands beside the graph with 4 bits only.
        chosen = [n for n in names if n != "themis llamacpp" or precision == "int4"]
        for count in clients:
            with ExitStack() as stack:
                processes = [
                    stack.enter_context(
                        running(
                            name,
                            gguf_model.ensure() if name == "themis llamacpp" else ours,
                            threads,
                            count,
                        )
                    )
                    for name in chosen
                ]
                for process in processes:
                    process.run(workload(count, 1, prompt_tokens, quick=True))
                for number in range(rounds):
                    turn = number % len(processes)
                    work = workload(count, 100 + number, prompt_tokens, quick=quick)
                    for process in [*processes[turn:], *processes[:turn]]:
                        took = process.run(work)
                        one = Measurement(number, precision, process.name, count, **_fields(took))
                        click.echo(_line(one))
                        found.append(one)
    return found


def ratios(found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Tokens per second of Themis over those of each other contender, round by round."""
    rows = []
    for precision, clients, name in dict.fromkeys(
        (m.precision, m.clients, m.contender) for m in found
    ):
        if name == OURS:
            continue
        ours, theirs = (
            [m for m in found if (m.precision, m.clients, m.contender) == (precision, clients, n)]
            for n in (OURS, name)
        )
        values = [
            a.tokens_per_second / b.tokens_per_second
            for a in ours
            for b in theirs
            if a.round == b.round
        ]
        if values:
            rows.append(
                {
                    "precision": precision,
                    "clients": clients,
                    "over": name,
                    "min": round(min(values), 3),
                    "median": round(statistics.median(values), 3),
                    "max": round(max(values), 3),
                    "target": TARGETS.get(clients) if name.startswith("genai") else None,
                }
            )
    return rows


def table(found: Sequence[Measurement]) -> str:
    """Medians and ratios as Markdown."""
    lines = ["| precision | clients | | tokens/s | CPU per token |", "|---|--:|---|--:|--:|"]
    for precision, clients, name in dict.fromkeys(
        (m.precision, m.clients, m.contender) for m in found
    ):
        mine = [
            m for m in found if (m.precision, m.clients, m.contender) == (precision, clients, name)
        ]
        speed = statistics.median(m.tokens_per_second for m in mine)
        cpu = statistics.median(1000 * m.cpu_seconds / m.tokens for m in mine)
        lines.append(f"| {precision} | {clients} | {name} | {speed:.1f} | {cpu:.1f} ms |")
    lines += ["", "| precision | clients | themis onnx over | min | median | max | target |"]
    lines += ["|---|--:|---|--:|--:|--:|--:|"]
    for row in ratios(found):
        target = "" if row["target"] is None else f"{row['target']:.1f}"
        spread = " | ".join(f"{row[name]:.2f}" for name in ("min", "median", "max"))
        lines.append(
            f"| {row['precision']} | {row['clients']} | {row['over']} | {spread} | {target} |"
        )
    return "\n".join(lines)


def _fields(took: Took) -> dict[str, Any]:
    return msgspec.structs.asdict(took)


def _line(m: Measurement) -> str:
    return (
        f"round {m.round + 1}  {m.precision}  {m.clients:>2} clients  {m.contender:<26}"
        f"{m.tokens_per_second:7.1f} tokens/s  CPU {m.cpu_seconds:5.1f} of {m.seconds:5.1f} s"
    )


@click.command()
@click.option("--clients", multiple=True, type=click.IntRange(1, 64), default=(1, 8))
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "int4"]),
    default=("fp32", "int4"),
    show_default=True,
)
@click.option(
    "--prompt-tokens", type=click.IntRange(1, 128), default=PROMPT_TOKENS, show_default=True
)
@click.option("--only", "names", multiple=True, type=click.Choice(list(CONTENDERS)))
@click.option("--quick", is_flag=True, help="One round with fewer requests: a trial, no result.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default="benchmarks/results",
)
def onnx(
    clients: tuple[int, ...],
    threads: int,
    rounds: int,
    precisions: tuple[Precision, ...],
    prompt_tokens: int,
    names: tuple[str, ...],
    quick: bool,
    out: Path,
) -> None:
    """Themis on ONNX Runtime beside onnxruntime-genai and Themis on llama.cpp, without servers."""
    found = measure(
        precisions,
        clients,
        names or list(CONTENDERS),
        threads=threads,
        rounds=1 if quick else rounds,
        prompt_tokens=prompt_tokens,
        quick=quick,
    )
    click.echo("\n" + table(found))
    if quick:
        return
    out.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine(),
        "threads": threads,
        "prompt_tokens": prompt_tokens,
        "ratios": ratios(found),
        "measurements": [asdict(m) for m in found],
    }
    (out / "onnx.json").write_text(json.dumps(data, indent=1) + "\n")
