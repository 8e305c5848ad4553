"""What this process may use of the machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """One thread per core that this process may use; beyond two, one core is left to the rest."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    quota, _, period = _read(_QUOTA).partition(" ")  # "max 100000" without a limit.
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores - 1 if cores > 2 else cores


def memory_limit() -> int | None:
    """Bytes of memory of the machine, or of the container; None where that is not known."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Not offered by this system.
        return None
    limit = _read(_LIMIT)
    return min(physical, int(limit)) if limit.isdigit() else physical


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):  # No such group, or one that does not tell.
        return ""
