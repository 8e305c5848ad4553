"""What was measured, and on what: processor, system, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """The processor, its cores and memory, and the software below."""
    return {
        "cpu": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(_line("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured, with `-dirty` if the packages differ from it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "themis_core", "themis_engine", "plugins")
    except (OSError, subprocess.CalledProcessError):  # No git, or no checkout.
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    result = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _line(path: str, name: str) -> str:
    """The value in the first line that begins with `name`; empty if there is none."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""
