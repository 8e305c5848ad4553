"""The one plot: throughput and time to first token by number of clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = ("#2563eb", "#6b7280", "#d1a054")


def draw(data: dict[str, Any], path: Path) -> None:
    """Write an SVG of the summary; whiskers go from the slowest to the fastest round."""
    # Loaded here: it takes a second, and measuring does not need it.
    import matplotlib as mpl  # type: ignore[import-not-found, unused-ignore]

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "themis", "font.size": 9, "axes.spines.top": False})
    mpl.rcParams["axes.spines.right"] = False
    from matplotlib import pyplot as plt

    rows = data["summary"]
    servers = list(dict.fromkeys(row["server"] for row in rows))
    clients = sorted({row["clients"] for row in rows})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
    width = 0.8 / len(servers)
    for number, server in enumerate(servers):
        of_server = {row["clients"]: row for row in rows if row["server"] == server}
        places = [i + (number - (len(servers) - 1) / 2) * width for i in range(len(clients))]
        rates = [of_server[count]["tokens_per_second"] for count in clients]
        medians = [rate["median"] for rate in rates]
        below = [rate["median"] - rate["min"] for rate in rates]
        above = [rate["max"] - rate["median"] for rate in rates]
        colour = _COLOURS[number % len(_COLOURS)]
        bars = left.bar(places, medians, width * 0.92, label=server, color=colour)
        left.errorbar(places, medians, [below, above], fmt="none", ecolor="#111827", lw=1)
        left.bar_label(bars, fmt="%.0f", label_type="center", color="white", fontsize=8)
        first = [of_server[count]["ttft_p50_ms"] for count in clients]
        right.bar(places, first, width * 0.92, color=colour)
    for axes, title in (
        (left, "Generated tokens per second (more is better)"),
        (right, "Time to first token, p50, ms (less is better; log scale)"),
    ):
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xticks(range(len(clients)), [str(count) for count in clients])
        axes.set_xlabel("concurrent clients")
    right.set_yscale("log")
    left.legend(frameon=False, fontsize=8)
    machine, load = data["machine"], data["load"]
    figure.supxlabel(
        f"{machine['cpu']}, {machine['cores']} cores, {load['threads']} threads; "
        f"{data['model']['file']}; {load['prompt_tokens']} + {load['new_tokens']} tokens",
        fontsize=7,
        color="#6b7280",
    )
    figure.savefig(path, metadata={"Date": None})
