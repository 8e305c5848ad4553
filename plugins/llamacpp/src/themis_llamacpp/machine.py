"""What this process may use of the machine: cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Physical cores that this process may use, less one for the server if more than three.

    llama.cpp's threads wait for each other in busy loops: one thread too many, or a core that the
    server needs meanwhile, costs more than one thread less.
    """
    cores = min(_physical_cores(), _cpu_quota())
    return max(1, cores - 1 if cores > 3 else cores)


def memory_limit() -> int | None:
    """Bytes of memory that the machine, or this process's container, has; None if unknown."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Not offered by this system.
        return None
    limit = _read(_CGROUP / "memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    # Hyper-threads of one core name the same siblings; an unreadable file counts as a core.
    topology = "cpu{}/topology/thread_siblings_list"
    return len({_read(_CPUS / topology.format(cpu)) or str(cpu) for cpu in allowed})


def _cpu_quota() -> int:
    """Whole cores that the container's quota allows, at least one."""
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return os.cpu_count() or 1
    return max(1, int(quota) // int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # Not Linux, or not readable: nothing known.
        return ""
