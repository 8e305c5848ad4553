"""How many threads and how much memory a process may use, told by files as Linux writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from themis_llamacpp import machine


def groups(root: Path, own: str, **files: str) -> tuple[Path, Path]:
    """Control groups: file names have `__` for slashes."""
    for name, text in files.items():
        file = root / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (root / "own").write_text(own + "\n")
    return root / "cgroup", root / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu_max": "max 100000"}, None),
        ("0::/", {"cpu_max": "200000 100000"}, 2.0),
        ("0::/", {"cpu_max": "50000 100000"}, 0.5),
        ("0::/a/b", {"a__cpu_max": "150000 100000", "a__b__cpu_max": "max 100000"}, 1.5),
        ("0::/a/b", {"a__cpu_max": "300000 100000", "a__b__cpu_max": "100000 100000"}, 1.0),
        ("0::/a", {"other__cpu_max": "100000 100000"}, None),
        ("4:cpu,cpuacct:/a", {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "1"}, None),
        (
            "4:cpu,cpuacct:/a",
            {
                "cpu,cpuacct__a__cpu_cfs_quota_us": "400000",
                "cpu,cpuacct__a__cpu_cfs_period_us": "100000",
            },
            4.0,
        ),
        ("3:memory:/a", {"memory__a__cpu_max": "100000 100000"}, None),
        ("0::/", {"cpu_max": "what 100000"}, None),
        ("0::/", {"cpu_max": "100000 0"}, None),
        ("", {"cpu_max": "100000"}, None),
        ("0::/../../a", {"cpu_max": "200000 100000"}, 2.0),
    ],
)
def test_quotas(tmp_path: Path, own: str, files: dict[str, str], expected: float | None) -> None:
    assert machine.cpu_quota(*groups(tmp_path, own, **files)) == expected


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [(1, None, 1), (2, None, 2), (3, None, 2), (64, None, 63), (64, 4.0, 3), (64, 2.5, 2),
     (64, 0.2, 1), (2, 8.0, 2)],
)  # fmt: skip
def test_threads(
    monkeypatch: pytest.MonkeyPatch, cores: int, quota: float | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.default_threads() == threads


def test_this_machine_has_memory() -> None:
    limit = machine.memory_limit()
    assert limit is None or limit > 2**20
