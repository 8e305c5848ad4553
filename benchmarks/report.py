"""From measurements to figures: medians, ratios for each round, the machine, JSON and Markdown."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import model
from benchmarks.peers import Load, Peer
from benchmarks.serving import NEW_TOKENS, PROMPT_TOKENS, Measurement

OURS = "themis"


def summarise(found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One row for each server and number of clients; latencies pooled over the rounds.

    Disturbed measurements count only where there are no others.
    """
    rows = []
    for server, clients in dict.fromkeys((m.server, m.clients) for m in found):
        everything = _select(found, server, clients)
        chosen = [m for m in everything if not m.disturbed] or everything
        ttft = [value for m in chosen for value in m.ttft]
        tpot = [value for m in chosen for value in m.tpot]
        tokens = [m.tokens_per_second * m.seconds for m in chosen]
        rows.append(
            {
                "server": server,
                "clients": clients,
                "rounds": len(chosen),
                "tokens_per_second": _spread(m.tokens_per_second for m in chosen),
                "ttft_p50_ms": round(1000 * _percentile(ttft, 50), 1),
                "ttft_p99_ms": round(1000 * _percentile(ttft, 99), 1),
                "tpot_p50_ms": round(1000 * _percentile(tpot, 50), 2),
                "cpu_ms_per_token": _spread(
                    1000 * m.cpu_seconds / count for m, count in zip(chosen, tokens, strict=True)
                ),
                "peak_mib": round(max(m.peak_mib for m in chosen)),
            }
        )
    return rows


def ratios(found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Throughput of Themis over that of each peer, in rounds in which neither was disturbed."""
    rows = []
    for server, clients in dict.fromkeys((m.server, m.clients) for m in found):
        if server == OURS:
            continue
        pairs = zip(_select(found, OURS, clients), _select(found, server, clients), strict=True)
        values = [
            ours.tokens_per_second / theirs.tokens_per_second
            for ours, theirs in pairs
            if not ours.disturbed and not theirs.disturbed
        ]
        if values:
            row = {"peer": server, "clients": clients, "rounds": len(values)}
            rows.append({**row, "ratio": _spread(values)})
    return rows


def document(found: Sequence[Measurement], load: Load, peers: Sequence[Peer]) -> dict[str, Any]:
    """Everything, ready for JSON."""
    measured = {m.server for m in found}
    return {
        "commit": _commit(),
        "machine": machine(),
        "model": {
            "file": load.model.name,
            "parameters": model.parameters(),
            "size_mib": round(load.model.stat().st_size / 2**20, 1),
        },
        "load": {
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
            "threads": load.threads,
            "parallel": load.parallel,
            "context_per_sequence": load.context,
            "themis_settings": dict(load.settings),
        },
        "versions": {peer.name: peer.versions() for peer in peers},
        "summary": summarise(found),
        "ratios": ratios(found) if OURS in measured and len(measured) > 1 else [],
        "measurements": [m.as_json() for m in found],
    }


def save(data: dict[str, Any], folder: Path) -> Path:
    """Write `serving.json`: indented, with one line for each measurement."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "serving.json"
    rest = {key: value for key, value in data.items() if key != "measurements"}
    lines = ",\n".join(f"    {json.dumps(m)}" for m in data["measurements"])
    head = json.dumps(rest, indent=2).removesuffix("\n}")
    path.write_text(f'{head},\n  "measurements": [\n{lines}\n  ]\n}}\n')
    return path


def table(data: dict[str, Any]) -> str:
    """The summary and the ratios as Markdown."""
    lines = [
        "| clients | server | tokens/s | TTFT p50 / p99 | TPOT p50 | CPU per token | memory |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(data["summary"], key=lambda row: row["clients"]):
        lines.append(
            f"| {row['clients']} | {row['server']} | {row['tokens_per_second']['median']:.1f} "
            f"| {row['ttft_p50_ms']:.0f} / {row['ttft_p99_ms']:.0f} ms "
            f"| {row['tpot_p50_ms']:.1f} ms | {row['cpu_ms_per_token']['median']:.1f} ms "
            f"| {row['peak_mib']} MiB |"
        )
    lines += ["", "| clients | Themis over | rounds | min | median | max |"]
    lines += ["|--:|---|--:|--:|--:|--:|"]
    for row in sorted(data["ratios"], key=lambda row: row["clients"]):
        spread = " | ".join(f"{row['ratio'][name]:.2f}" for name in ("min", "median", "max"))
        lines.append(f"| {row['clients']} | {row['peer']} | {row['rounds']} | {spread} |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """The processor, its cores, and the software below."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _commit() -> str:
    """The commit that was measured, with `-dirty` if the packages differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "themis_core", "themis_engine", "plugins")
    except (OSError, subprocess.CalledProcessError):  # No git, or no checkout.
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    result = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _select(found: Sequence[Measurement], server: str, clients: int) -> list[Measurement]:
    chosen = [m for m in found if m.server == server and m.clients == clients]
    return sorted(chosen, key=lambda m: m.round)


def _spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    named = {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}
    return {name: round(value, 3) for name, value in named.items()}


def _percentile(values: Sequence[float], percent: int) -> float:
    """The nearest value, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
