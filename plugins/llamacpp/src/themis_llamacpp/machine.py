"""What this process may use of the machine it runs on: processors and memory."""

from __future__ import annotations

import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def default_threads() -> int:
    """One thread per core that this process may use; beyond two, one core is left to the rest.

    llama.cpp's threads spin at barriers: with more busy threads than cores, decoding collapses.
    So a container that is granted the time of two cores gets two threads, however many it sees.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    quota = cpu_quota()
    if quota is not None:
        cores = min(cores, max(1, int(quota)))
    return cores - 1 if cores > 2 else cores


def cpu_quota(groups: Path = _GROUPS, own: Path = _OWN) -> float | None:
    """Cores' worth of time that the control groups grant; None without a limit.

    A limit can be set at this process's group or at any above it. The files: `cpu.max` ("quota
    period", version 2), and `cpu.cfs_quota_us` beside `cpu.cfs_period_us` (version 1), in µs.
    """
    limits = []
    for folder in _group_folders(groups, own):
        words = _read(folder / "cpu.max").split()
        if not words:
            words = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        # Without a limit the quota is "max" or "-1", and neither is all digits.
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def _group_folders(groups: Path, own: Path) -> list[Path]:
    """The folders of this process's control groups, and all above them, in both versions."""
    folders = {groups, groups / "cpu", groups / "cpu,cpuacct"}
    for line in _read(own).splitlines():
        # "number:controllers:path"; version 2 has no controllers.
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        start = groups / controllers if controllers else groups
        folder = start / path.lstrip("/")
        while folder != start and start in folder.parents:
            folders.add(folder)
            folder = folder.parent
    return sorted(folders)


def memory_limit() -> int | None:
    """Bytes of memory of the machine, or of the container; None where that is not known."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Not offered by this system.
        return None
    limit = _read(_GROUPS / "memory.max")
    return min(physical, int(limit)) if limit.isdigit() else physical


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):  # No such group, or one that does not tell.
        return ""
