"""The plot of a load: throughput and time to first token by number of clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = ("#2563eb", "#6b7280", "#d1a054", "#7c9a6d")


def draw(data: dict[str, Any], path: Path) -> None:
    """Write an SVG of the summary; whiskers go from the slowest to the fastest round."""
    # Loaded here: it takes a second, and measuring does not need it.
    import matplotlib as mpl  # type: ignore[import-not-found, unused-ignore]

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "themis", "font.size": 9, "axes.spines.top": False})
    mpl.rcParams["axes.spines.right"] = False
    from matplotlib import pyplot as plt

    rows = sorted(data["summary"], key=lambda row: row["clients"])
    servers = list(dict.fromkeys(row["server"] for row in data["summary"]))
    clients = list(dict.fromkeys(row["clients"] for row in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
    width = 0.8 / len(servers)
    for number, server in enumerate(servers):
        own = [row for row in rows if row["server"] == server]
        shift = (number - (len(servers) - 1) / 2) * width
        places = [clients.index(row["clients"]) + shift for row in own]
        rates = [row["tokens_per_second"] for row in own]
        medians = [rate["median"] for rate in rates]
        below = [rate["median"] - rate["min"] for rate in rates]
        above = [rate["max"] - rate["median"] for rate in rates]
        colour = _COLOURS[number % len(_COLOURS)]
        bars = left.bar(places, medians, width * 0.92, label=server, color=colour)
        left.errorbar(places, medians, [below, above], fmt="none", ecolor="#111827", lw=1)
        left.bar_label(bars, fmt="%.0f", label_type="center", color="white", fontsize=8)
        right.bar(places, [row["ttft_p50_ms"] for row in own], width * 0.92, color=colour)
        right.plot(places, [row["ttft_p99_ms"] for row in own], "_", color="#111827", ms=8)
    for axes, title in (
        (left, "Generated tokens per second (more is better)"),
        (right, "Time to first token, ms (less is better; log): p50, line p99"),
    ):
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xticks(range(len(clients)), [str(count) for count in clients])
        axes.set_xlabel("concurrent clients")
    right.set_yscale("log")
    left.legend(frameon=False, fontsize=8)
    machine = data["machine"]
    figure.suptitle(data["title"], fontsize=10, x=0.01, ha="left")
    figure.supxlabel(
        f"{machine['cpu']}, {machine['cores']} cores, {data['setup']['threads']} threads; "
        f"{data['model']['file']}",
        fontsize=7,
        color="#6b7280",
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
