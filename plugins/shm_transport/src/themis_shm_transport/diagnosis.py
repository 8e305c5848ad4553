"""What `themis doctor` tells of what this host grants to workers: shared memory, descriptors."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from themis_core.hooks import Finding
from themis_shm_transport.address import DEFAULT_ARENA
from themis_shm_transport.arena import AVAILABLE, Arena, PeerArena

_SHM = Path("/dev/shm")
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_FEW = 1024  # A connection of `shm` has three descriptors, a client of the server one more.


def host() -> list[Finding]:
    """Arenas are really made and mapped; limits are read."""
    return [_memfd(), _shared_memory(), _descriptors(), _core_dumps()]


def _memfd() -> Finding:
    subject = "shm: memfd"
    remedy = "`shm` then works as `unix` does: what is large goes through the socket."
    if not AVAILABLE:
        message = "This system has no memfd."
        return Finding(level="note", subject=subject, message=message, remedy=remedy)
    try:
        arena = Arena(DEFAULT_ARENA)
        try:
            PeerArena(os.dup(arena.fd), DEFAULT_ARENA).close()
        finally:
            arena.close()
    # Without the seals, or the memory; ProtocolError where a sandbox only pretends to seal.
    except Exception as error:  # noqa: BLE001
        message = f"An arena of {DEFAULT_ARENA >> 20} MiB cannot be made: {error}."
        return Finding(level="warning", subject=subject, message=message, remedy=remedy)
    message = f"Arenas of {DEFAULT_ARENA >> 20} MiB can be made, sealed and mapped."
    return Finding(level="ok", subject=subject, message=message, data={"arena": DEFAULT_ARENA})


def _shared_memory() -> Finding:
    subject = "shm: /dev/shm"
    if not _SHM.is_dir():
        return Finding(level="ok", subject=subject, message="There is none, and none is needed.")
    found = os.statvfs(_SHM)
    size, free = found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
    return Finding(
        level="ok",
        subject=subject,
        message=f"{size >> 20:,} MiB, {free >> 20:,} free. Arenas are not in it: as any memory, "
        "they count towards the container's limit.",
        data={"bytes": size, "free": free},
    )


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    told = "unlimited" if soft == unlimited else f"{soft:,}"
    most = "unlimited" if hard == unlimited else f"{hard:,}"
    data = {"soft": soft, "hard": hard}
    message = f"{told} for a process (it may raise that to {most})."
    few = soft != unlimited and soft < _FEW
    return Finding(
        level="warning" if few else "ok",
        subject="file descriptors",
        message=message,
        remedy=f"Raise the limit: ulimit -n {_FEW * 4}." if few else None,
        data=data,
    )


def _core_dumps() -> Finding:
    """What remains of a worker that crashes."""
    soft = resource.getrlimit(resource.RLIMIT_CORE)[0]
    try:
        pattern = _CORE_PATTERN.read_text().strip()
    except OSError:
        pattern = "unknown"
    if soft == 0 and not pattern.startswith("|"):
        message = "A worker that crashes leaves none (ulimit -c is 0)."
    else:
        message = f"A worker that crashes leaves one: {pattern}."
    return Finding(
        level="ok", subject="core dumps", message=message, data={"limit": soft, "pattern": pattern}
    )
