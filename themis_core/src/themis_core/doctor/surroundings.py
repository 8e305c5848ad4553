"""What surrounds Themis: versions, memory, and who may write what."""

from __future__ import annotations

import os
import platform
import stat
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from themis_core.doctor.configured import Configured
from themis_core.hooks import Finding

_LIMIT = Path("/sys/fs/cgroup/memory.max")


def versions() -> list[Finding]:
    """Python, the machine, and every installed distribution of Themis."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        # The name of its folder, too, where its metadata is broken.
        name = canonicalize_name(str(getattr(distribution, "name", "") or ""))
        if name.startswith("themis-"):
            found.setdefault(name, distribution.version)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    listed = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    machine = f"{platform.platform()}, {os.cpu_count()} processors."
    return [
        Finding(level="ok", subject="Python", message=f"{python} on {machine}"),
        Finding(level="ok", subject="Themis", message=f"{listed}.", data={"versions": found}),
    ]


def memory(found: Configured) -> list[Finding]:
    """What all models need together, beside what there is."""
    plans = [f.data for m in found.models for f in m.findings if f.subject == "memory"]
    needed = sum(plan.get("bytes", 0) for plan in plans)
    unknown = sum("bytes" not in plan for plan in plans)
    available = memory_limit()
    if not found.ready or available is None:
        return []
    told = f", and {unknown} more of which it is not known" if unknown else ""
    message = (
        f"About {needed >> 20:,} MiB for {len(plans) - unknown} model(s) together{told}; "
        f"this process may have {available >> 20:,} MiB."
    )
    data = {"needed": needed, "available": available, "unknown": unknown}
    if needed <= available:
        return [Finding(level="ok", subject="all models", message=message, data=data)]
    remedy = "Smaller models, contexts or caches; or models that are not loaded at one time."
    return [
        Finding(level="warning", subject="all models", message=message, remedy=remedy, data=data)
    ]


def memory_limit() -> int | None:
    """Bytes of memory of the machine, or of the container; None where that is not known."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Not offered by this system.
        return None
    try:
        limit = _LIMIT.read_text().strip()
    except OSError:  # No control groups.
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def permissions(found: Configured, lock: Path | None) -> list[Finding]:
    """Who may change the configuration, the lock, and the folders of sockets."""
    checked = []
    if found.source is not None:
        checked.append(_private(Path(found.source), "the configuration"))
    if lock is not None:
        checked.append(_private(lock, "the lock"))
    for model in found.models:
        path = Path(model.paths.get("path", "")).expanduser()
        if path.is_socket():
            checked.append(_private(path.parent, f"the folder of {model.name}'s socket"))
    return checked


def _private(path: Path, what: str) -> Finding:
    try:
        status = path.stat()
    except OSError as error:
        message = f"{what[0].upper()}{what[1:]} cannot be looked at: {error.strerror}."
        return Finding(level="error", subject=str(path), message=message)
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    mode = stat.filemode(status.st_mode)
    if status.st_mode & stat.S_IWOTH and not sticky:
        return Finding(
            level="error",
            subject=str(path),
            message=f"Everybody may change {what} ({mode}).",
            remedy=f"chmod o-w {path}",
        )
    if status.st_uid not in (os.geteuid(), 0):
        return Finding(
            level="warning",
            subject=str(path),
            message=f"{what[0].upper()}{what[1:]} belongs to another user "
            f"({mode}, user id {status.st_uid}).",
        )
    message = f"Not everybody may change it ({mode})."
    return Finding(level="ok", subject=str(path), message=message)
