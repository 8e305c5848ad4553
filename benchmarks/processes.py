"""What a process and its children use, read from Linux's /proc."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            pids += family(int(child))
    return pids


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children, since they began."""
    total = 0
    for member in family(pid):
        # The command's name, in parentheses, can contain spaces.
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def machine_cpu_seconds() -> float:
    """Time that all cores together were not idle, since the machine started."""
    user, nice, system, _idle, _waiting, *rest = _machine_ticks()
    return (user + nice + system + sum(rest[:3])) / _TICKS


def _machine_ticks() -> list[int]:
    line = Path("/proc/stat").read_text().partition("\n")[0]
    return [int(field) for field in line.split()[1:]]


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, files they share counted for each."""
    pages = (int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in family(pid))
    return sum(pages) * _PAGE / 2**20


class Peak:
    """The largest value seen."""

    def __init__(self) -> None:
        self.value = 0.0


@asynccontextmanager
async def watch_memory(pid: int, every: float = 0.5) -> AsyncIterator[Peak]:
    """Sample the resident memory of a process while the block runs."""
    peak = Peak()

    async def sample() -> None:
        while True:
            peak.value = max(peak.value, resident_mib(pid))
            await asyncio.sleep(every)

    task = asyncio.create_task(sample())
    try:
        yield peak
    finally:
        task.cancel()
        peak.value = max(peak.value, resident_mib(pid))
