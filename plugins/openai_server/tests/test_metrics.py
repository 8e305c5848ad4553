"""`GET /metrics`: every figure of every loaded model, in Prometheus' text format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import msgspec

from themis_core.messages import BackendStats, Histogram
from themis_core.runtime import HookStats
from themis_openai_server.metrics import HOOK_METRICS, METRICS, exposition

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
    assert {"hook", "call", *HOOK_METRICS} == set(HookStats.__struct_fields__)
    names = [name for name, _, _ in (*METRICS.values(), *HOOK_METRICS.values())]
    assert len(set(names)) == len(names)
    documented = README.read_text(encoding="utf-8")
    metrics = [(BackendStats(), METRICS), (HookStats(hook="", call=""), HOOK_METRICS)]
    for stats, field, name, kind in (
        (stats, field, name, kind)
        for stats, family in metrics
        for field, (name, kind, _) in family.items()
    ):
        assert f"`{name}`" in documented
        histogram = isinstance(getattr(stats, field), Histogram)
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


def test_hooks() -> None:
    seconds = Histogram(bounds=(0.5,), counts=(2, 1), total=1.25)
    hook = HookStats(hook='validators."a"', call="check_input", seconds=seconds, timeouts=4)
    found = samples(exposition({}, [hook]).decode())
    label = r'hook="validators.\"a\"",call="check_input"'
    assert found == {
        ("themis_hook_seconds_bucket", f'{label},le="0.5"'): 2,
        ("themis_hook_seconds_bucket", f'{label},le="+Inf"'): 3,
        ("themis_hook_seconds_sum", label): 1.25,
        ("themis_hook_seconds_count", label): 3,
        ("themis_hook_timeouts_total", label): 4,
        ("themis_hook_failures_total", label): 0,
    }


def test_endpoint(door: Door) -> None:
    door.runtime.all_stats = {"m": BackendStats(requests=3)}
    door.runtime.all_hooks = [HookStats(hook="quota", call="reserve", failures=2)]
    response = httpx.get(f"{door.url}/metrics", timeout=WAIT_S)
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(response.text)
    assert found["themis_requests_total", 'model="m"'] == 3
    assert found["themis_hook_failures_total", 'hook="quota",call="reserve"'] == 2
    assert httpx.post(f"{door.url}/metrics", timeout=WAIT_S).status_code == 405


def test_no_model_is_loaded(door: Door) -> None:
    assert samples(httpx.get(f"{door.url}/metrics", timeout=WAIT_S).text) == {}


def test_it_needs_the_key(open_door: OpenDoor) -> None:
    door = open_door(key="k", api_keys=("k",))
    assert httpx.get(f"{door.url}/metrics", timeout=WAIT_S).status_code == 401
    headers = {"authorization": "Bearer k"}
    assert httpx.get(f"{door.url}/metrics", headers=headers, timeout=WAIT_S).status_code == 200
