"""How busy a server is, from its Prometheus page.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import math
import re

from themis_vllm_remote.door import Load

# A label's value is quoted and may hold any sign; the line may end in a time.
_SAMPLE = re.compile(r'(\w[\w:]*)(?:\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?\s+(\S+)(?:\s+\S+)?\s*\Z')


def load_of(page: str) -> Load:
    """The load that a page tells, summed over its engines. Lines that are no samples are skipped.

    `counters` are all samples whose names begin with `vllm:`, by name.
    """
    sums: dict[str, float] = {}
    for line in page.split("\n"):
        if not line.startswith("vllm:"):
            continue
        found = _SAMPLE.match(line)
        if found is None:
            continue
        try:
            value = float(found[2])
        except ValueError:
            continue
        if math.isfinite(value):
            sums[found[1]] = sums.get(found[1], 0.0) + value
    return Load(
        running=round(sums.get("vllm:num_requests_running", 0.0)),
        waiting=round(sums.get("vllm:num_requests_waiting", 0.0)),
        kv_usage=sums.get("vllm:kv_cache_usage_perc", 0.0),
        counters=sums,
    )
