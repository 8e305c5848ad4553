"""`GET /metrics`: every figure of every loaded model, in Prometheus' text format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import msgspec

from themis_core.messages import BackendStats, Histogram
from themis_openai_server.metrics import METRICS, exposition

from .conftest import WAIT_S, Door, OpenDoor

README = Path(__file__).parents[1] / "README.md"
_SAMPLE = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)+)\} (\S+)')


def samples(text: str) -> dict[tuple[str, str], float]:
    """Name and labels → value, of each line that is no comment."""
    found: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (?:HELP \w+ .+|TYPE \w+ (?:counter|gauge|histogram))", line)
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, line
        assert (match[1], match[2]) not in found
        found[match[1], match[2]] = float(match[3])
    return found


def test_every_field_appears_and_is_documented() -> None:
    assert set(METRICS) == set(BackendStats.__struct_fields__)
    names = [name for name, _, _ in METRICS.values()]
    assert len(set(names)) == len(names)
    documented = README.read_text(encoding="utf-8")
    for field, (name, kind, _) in METRICS.items():
        assert f"`{name}`" in documented
        histogram = isinstance(getattr(BackendStats(), field), Histogram)
        assert (kind == "histogram") == histogram
        assert (kind == "counter") == name.endswith("_total")


def test_values() -> None:
    numbers: dict[str, Any] = {
        field.name: 10 + i
        for i, field in enumerate(msgspec.structs.fields(BackendStats))
        if isinstance(field.default, int)
    }
    ttft = Histogram(bounds=(0.1, 2.5), counts=(3, 0, 2), total=7.5)
    text = exposition({"m": BackendStats(**numbers, ttft=ttft), 'b"\\\n': BackendStats()}).decode()
    found = samples(text)
    for field, value in numbers.items():
        assert found[METRICS[field][0], 'model="m"'] == value
        assert found[METRICS[field][0], r'model="b\"\\\n"'] == 0
    name = METRICS["ttft"][0]
    assert [found[f"{name}_bucket", f'model="m",le="{le}"'] for le in ("0.1", "2.5", "+Inf")] == [
        3,
        3,
        5,
    ]
    assert found[f"{name}_sum", 'model="m"'] == 7.5
    assert found[f"{name}_count", 'model="m"'] == 5
    assert found[f"{name}_count", r'model="b\"\\\n"'] == 0


def test_endpoint(door: Door) -> None:
    door.runtime.all_stats = {"m": BackendStats(requests=3)}
    response = httpx.get(f"{door.url}/metrics", timeout=WAIT_S)
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples(response.text)["themis_requests_total", 'model="m"'] == 3
    assert httpx.post(f"{door.url}/metrics", timeout=WAIT_S).status_code == 405


def test_no_model_is_loaded(door: Door) -> None:
    assert samples(httpx.get(f"{door.url}/metrics", timeout=WAIT_S).text) == {}


def test_it_needs_the_key(open_door: OpenDoor) -> None:
    door = open_door(key="k", api_keys=("k",))
    assert httpx.get(f"{door.url}/metrics", timeout=WAIT_S).status_code == 401
    headers = {"authorization": "Bearer k"}
    assert httpx.get(f"{door.url}/metrics", headers=headers, timeout=WAIT_S).status_code == 200
