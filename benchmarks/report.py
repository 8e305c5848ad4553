"""From measurements to figures: medians, ratios for each round, goals, JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import model
from benchmarks.loads import Load, Metric
from benchmarks.machine import commit, machine
from benchmarks.peers import THEMIS, Peer, Setup
from benchmarks.serving import Measurement

METRICS: dict[Metric, Callable[[Measurement], float]] = {
    "tokens_per_second": lambda m: m.tokens_per_second,
    "ttft_p50": lambda m: percentile(m.ttft, 50),
    "ttft_p99": lambda m: percentile(m.ttft, 99),
    "tpot_p50": lambda m: percentile(m.tpot, 50),
    "cpu_per_token": lambda m: m.cpu_seconds / m.tokens,
    "memory": lambda m: m.peak_mib,
}


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
        rows.append(
            {
                "server": server,
                "clients": clients,
                "rounds": len(chosen),
                "tokens_per_second": _spread(m.tokens_per_second for m in chosen),
                "ttft_p50_ms": round(1000 * percentile(ttft, 50), 1),
                "ttft_p99_ms": round(1000 * percentile(ttft, 99), 1),
                "tpot_p50_ms": round(1000 * percentile(tpot, 50), 2),
                "cpu_ms_per_token": _spread(1000 * m.cpu_seconds / m.tokens for m in chosen),
                "peak_mib": round(max(m.peak_mib for m in chosen)),
                "answers": len(ttft),
                "tokens": sum(m.tokens for m in chosen),
                "cached_tokens": sum(m.cached_tokens for m in chosen),
                "stopped": sum(m.stopped for m in chosen),
                "beside": sum(m.beside for m in chosen),
                "beside_per_second": round(
                    sum(m.beside for m in chosen) / sum(m.seconds for m in chosen), 3
                ),
            }
        )
    return rows


def ratios(found: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Themis over each peer, in rounds in which neither was disturbed: a spread by metric."""
    rows = []
    for server, clients in dict.fromkeys((m.server, m.clients) for m in found):
        pairs = [
            (ours, theirs)
            for ours in _select(found, THEMIS, clients)
            for theirs in _select(found, server, clients)
            if ours.round == theirs.round and not ours.disturbed and not theirs.disturbed
        ]
        if server == THEMIS or not pairs:
            continue
        row: dict[str, Any] = {"peer": server, "clients": clients, "rounds": len(pairs)}
        for name, of in METRICS.items():
            row[name] = _spread(of(ours) / of(theirs) for ours, theirs in pairs)
        rows.append(row)
    return rows


def document(
    found: Sequence[Measurement],
    load: Load,
    setup: Setup,
    peers: Sequence[Peer],
    left_out: Sequence[str],
) -> dict[str, Any]:
    """Everything, ready for JSON."""
    compared = ratios(found)
    return {
        "name": load.name,
        "title": load.title,
        "commit": commit(),
        "machine": machine(),
        "model": {
            "file": setup.model.name,
            "parameters": model.parameters(),
            "size_mib": round(setup.model.stat().st_size / 2**20, 1),
        },
        "setup": {
            "threads": setup.threads,
            "parallel": setup.parallel,
            "context_per_sequence": setup.context,
            "themis_settings": dict(setup.settings),
        },
        "versions": {peer.name: peer.versions() for peer in peers},
        "left_out": list(left_out),
        "goals": _goals(load, compared),
        "summary": summarise(found),
        "ratios": compared,
        "measurements": [m.as_json() for m in found],
    }


def save(data: dict[str, Any], folder: Path) -> Path:
    """Write `<name>.json`: indented, with one line for each measurement, if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{data['name']}.json"
    rest = {key: value for key, value in data.items() if key != "measurements"}
    lines = ",\n".join(f"    {json.dumps(m)}" for m in data.get("measurements", []))
    head = json.dumps(rest, indent=2).removesuffix("\n}")
    tail = f',\n  "measurements": [\n{lines}\n  ]' if lines else ""
    path.write_text(f"{head}{tail}\n}}\n")
    return path


def percentile(values: Sequence[float], percent: int) -> float:
    """The nearest value, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _goals(load: Load, compared: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, and the median that was."""
    rows = []
    for goal in load.goals:
        for row in compared:
            if (row["peer"], row["clients"]) == (goal.peer, goal.clients):
                reached = row[goal.metric]["median"]
                rows.append(
                    {
                        "peer": goal.peer,
                        "clients": goal.clients,
                        "metric": goal.metric,
                        "goal": goal.ratio,
                        "reached": reached,
                        "met": goal.met(reached),
                    }
                )
    return rows


def _select(found: Sequence[Measurement], server: str, clients: int) -> list[Measurement]:
    chosen = [m for m in found if m.server == server and m.clients == clients]
    return sorted(chosen, key=lambda m: m.round)


def _spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    named = {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}
    return {name: round(value, 3) for name, value in named.items()}
