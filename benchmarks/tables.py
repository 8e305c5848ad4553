"""The results as Markdown, and the README's tables made of them, so that none is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import onnx_bench
from benchmarks.loads import LOADS

_OTHERS = ("profile", "onnx", "transport", "vllm", "startup")
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"
_METRICS = {
    "tokens_per_second": "tokens/s",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "tpot_p50": "TPOT p50",
    "cpu_per_token": "CPU per token",
    "memory": "memory",
}


def table(data: dict[str, Any]) -> str:
    """The summary and the ratios of one load."""
    rows = sorted(data["summary"], key=lambda row: row["clients"])
    lines = _head("clients", "server", *_METRICS.values(), left=2)
    for row in rows:
        cells = [
            str(row["clients"]),
            row["server"],
            f"{row['tokens_per_second']['median']:.1f}",
            f"{row['ttft_p50_ms']:.0f} ms",
            f"{row['ttft_p99_ms']:.0f} ms",
            f"{row['tpot_p50_ms']:.1f} ms",
            f"{row['cpu_ms_per_token']['median']:.1f} ms",
            f"{row['peak_mib']} MiB",
        ]
        lines.append(_row(cells))
    if data["ratios"]:
        lines += ["", "Themis over its peers, the median of the rounds (lowest to highest):", ""]
        lines += _head("clients", "Themis over", "rounds", *_METRICS.values(), left=2)
    for row in sorted(data["ratios"], key=lambda row: row["clients"]):
        cells = [str(row["clients"]), row["peer"], str(row["rounds"])]
        lines.append(_row([*cells, *(_ratio(row[name]) for name in _METRICS)]))
    lines += [*_remarks(rows), *_left_out(data)]
    return "\n".join(lines) + "\n"


def goals(documents: Sequence[dict[str, Any]]) -> str:
    """What was to be reached, over all loads."""
    lines = _head("load", "clients", "Themis over", "of", "goal", "median", "", left=1)
    for data in documents:
        for row in data["goals"]:
            sign = "≥" if row["metric"] == "tokens_per_second" else "≤"
            cells = [
                data["name"],
                str(row["clients"]),
                row["peer"],
                _METRICS[row["metric"]],
                f"{sign} {row['goal']:g}",
                f"{row['reached']:.2f}",
                "met" if row["met"] else "**missed**",
            ]
            lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def profile_table(data: dict[str, Any]) -> str:
    """Where the time of a step goes, by number of sequences."""
    cases = data["cases"]
    lines = _head("of a step", *(f"{case['sequences']} sequences" for case in cases), left=1)
    lines.append(_row(["outside forward", *(f"{c['outside_percent']:.1f} %" for c in cases)]))
    lines.append(_row(["ms a step", *(f"{c['step_ms']:.2f}" for c in cases)]))
    lines.append(_row(["tokens/s", *(f"{c['tokens_per_second']:.1f}" for c in cases)]))
    for name in cases[0]["parts"]:
        cells = [f"{case['parts'][name]['percent']:.2f} %" for case in cases]
        depth = (len(name) - len(name.lstrip())) // 2
        lines.append(_row([f"{'· ' * depth}{name.strip()}", *cells]))
    return "\n".join(lines) + "\n"


def update_readme(readme: Path, results: Path) -> list[str]:
    """Write all results that are there between the README's two marks. Returns their names."""
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    documents = [found[name] for name in LOADS if name in found]
    parts = []
    if documents:
        parts.append(f"{_machine(documents)}\n\n### Goals\n\n{goals(documents)}")
    for data in documents:
        name = data["name"]
        parts.append(
            f"### {name}: {data['title']}\n\n"
            f"[{name}.json](results/{name}.json), measured at commit {data['commit']}.\n\n"
            f"{table(data)}\n![{data['title']}](results/{name}.svg)\n"
        )
    if "profile" in found:
        parts.append(
            "### profile: where the time of an engine step goes\n\n"
            f"Commit {found['profile']['commit']}.\n\n{profile_table(found['profile'])}"
        )
    if "onnx" in found:
        measurements = [onnx_bench.Measurement(**m) for m in found["onnx"]["measurements"]]
        parts.append(
            "### onnx: ONNX Runtime in Themis's engine beside onnxruntime-genai\n\n"
            f"[onnx.json](results/onnx.json), {found['onnx']['threads']} thread, prompts of "
            f"{found['onnx']['prompt_tokens']} tokens.\n\n{onnx_bench.table(measurements)}\n"
        )
    if "transport" in found:
        from benchmarks import transport

        data = found["transport"]
        parts.append(
            f"### transport: {data['title']}\n\n"
            f"[transport.json](results/transport.json), {data['setup']['rounds']} rounds, commit "
            f"{data['commit']}.\n\n{transport.table(data['summary'])}\n\n"
            f"![{data['title']}](results/transport.svg)\n"
        )
    if "vllm" in found:
        parts.append(f"### vllm: what each way to vLLM costs\n\n{vllm_table(found['vllm'])}\n")
    if "startup" in found:
        parts.append(f"### startup\n\n{startup_table(found['startup'])}\n")
    text = readme.read_text()
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{readme} lacks the marks {_BEGIN} and {_END}.")
    before, after = text.partition(_BEGIN)[0], text.partition(_END)[2]
    body = "\n".join(parts)
    readme.write_text(f"{before}{_BEGIN}\n\n{body}\n{_END}{after}")
    return [name for name in (*LOADS, *_OTHERS) if name in found]


def vllm_table(data: dict[str, Any]) -> str:
    """Milliseconds of an answer of one token and of each further one; tokens/s of many streams."""
    lines = [
        f"[vllm.json](results/vllm.json), commit {data['commit']}. One client; the median of "
        f"{len(data['rounds'])} rounds. The bare clients are aiohttp and grpcio.",
        "",
        *_head(
            *("way", "one token", "over AsyncLLM", "over the bare client", "each further token"),
            *("over AsyncLLM", "over the bare client"),
            left=1,
        ),
    ]
    for name, row in data["overhead"].items():
        cells = [name]
        for key in ("first", "next"):
            bare = [row[k] for k in row if k.startswith(f"{key}_over_bare")]
            cells += [f"{row[f'{key}_ms']:.2f} ms", f"{row[f'{key}_over_AsyncLLM']:.2f}"]
            cells += [f"{bare[0]:.2f}" if bare else ""]
        lines.append(_row(cells))
    lines += [
        "",
        "32 streams at once through one process, from a server that computes nothing:",
        "",
    ]
    lines += _head("client", "tokens/s", "CPU seconds per 1,000 tokens", left=1)
    for name, row in data["streams"].items():
        cpu = f"{row['cpu_seconds_per_1000']:.3f}"
        lines.append(_row([name, f"{row['tokens_per_second']:,}", cpu]))
    return "\n".join(lines)


def startup_table(data: dict[str, Any]) -> str:
    """Milliseconds until a command has ended."""
    lines = [
        f"[startup.json](results/startup.json), commit {data['commit']}, with all plugins "
        "installed.",
        "",
        *_head("command", "median", "more than `python -c pass`", "goal", left=1),
    ]
    for row in data["summary"]:
        more, goal = (f"{row[k]:g} ms" if k in row else "" for k in ("more_ms", "goal_ms"))
        lines.append(_row([f"`{row['command']}`", f"{row['median_ms']} ms", more, goal]))
    return "\n".join(lines)


def _machine(documents: Sequence[dict[str, Any]]) -> str:
    """One line for each machine that was measured on, with the versions."""
    lines: dict[str, list[str]] = {}
    for data in documents:
        m = data["machine"]
        versions = {k: v for of in data["versions"].values() for k, v in of.items()}
        packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        text = (
            f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Linux {m['kernel']}, "
            f"Python {m['python']}; {data['setup']['threads']} threads; {packages}"
        )
        lines.setdefault(text, []).append(data["name"])
    return "\n".join(f"- {', '.join(names)}: {text}." for text, names in lines.items())


def _remarks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the columns do not say, where there is anything to say."""
    lines = []
    for row in rows:
        if row["stopped"]:
            share = f"{row['stopped']} of {row['answers']} answers ended by themselves"
            length = f"{row['tokens'] / row['answers']:.0f} tokens on average"
            lines.append(f"- {row['server']}: {share}, and were valid; {length}.")
        if row["beside"]:
            lines.append(
                f"- {row['server']}: beside them, {row['beside_per_second']:.2f} long answers a "
                "second."
            )
        if row["cached_tokens"]:
            lines.append(
                f"- {row['server']}, {row['clients']} clients: {row['cached_tokens']} prompt "
                f"tokens in {row['answers']} answers were cached."
            )
    return ["", *lines] if lines else []


def _left_out(data: dict[str, Any]) -> list[str]:
    return ["", f"Left out: {', '.join(data['left_out'])}."] if data["left_out"] else []


def _ratio(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def _head(*names: str, left: int) -> list[str]:
    """Names, with numbers to the right but in the first columns."""
    return [_row(names), _row(["---"] * left + ["--:"] * (len(names) - left))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
