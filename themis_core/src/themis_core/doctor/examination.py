"""All checks, in order, each one guarded by what it is: reading, or a child process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from themis_core.doctor.configured import Configured, configured
from themis_core.doctor.files import model_files
from themis_core.doctor.serving import port
from themis_core.doctor.surroundings import memory, permissions, versions
from themis_core.errors import ThemisError
from themis_core.hooks import Finding, Level
from themis_core.plugins import Probe, discover, lock_beside, probe, read_lock

_LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Findings about one thing."""

    title: str
    findings: list[Finding]


def examine(
    config: str | None,
    *,
    limit: float,
    hashes: bool,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterable[Section]:
    """The sections, each one as soon as it is known. `limit`: seconds for each child process."""
    yield Section(title="versions", findings=versions())
    lock = lock_beside(config)
    yield Section(title="lock", findings=_lock(config))
    progress("trying the plugins")
    probes = probe(lock=str(lock) if lock else None, limit=limit)
    yield Section(title="plugins", findings=[finding for p in probes for finding in _plugin(p)])
    yield Section(title="native libraries", findings=_own_findings(probes))
    progress("reading the configuration")
    found = configured(config, limit)
    yield Section(title="configuration", findings=list(found.problems))
    yield Section(title="models", findings=_models(found))
    yield Section(title="model files", findings=model_files(found.models, hashes, progress))
    yield Section(title="memory", findings=memory(found))
    yield Section(title="port", findings=port(found.host, found.port) if found.ready else [])
    yield Section(title="permissions", findings=permissions(found, lock))


def worst(sections: Iterable[Section]) -> Level:
    """The highest level of all findings."""
    levels = {finding.level for section in sections for finding in section.findings}
    return max(levels, key=_LEVELS.index, default="ok")


def _lock(config: str | None) -> list[Finding]:
    path = lock_beside(config)
    if path is None:
        message = "There is none: any installed plugin may be loaded."
        return [Finding(level="ok", subject="themis.lock", message=message)]
    try:
        differences = read_lock(path).differences(discover())
    except ThemisError as error:
        return [_error("themis.lock", error)]
    if not differences:
        return [Finding(level="ok", subject=str(path), message="Everything is as it was locked.")]
    return [
        Finding(level="error", subject=d.distribution or "environment", message=d.message)
        for d in differences
    ]


def _plugin(status: Probe) -> list[Finding]:
    source = f"{status.distribution} {status.version}"
    data: dict[str, Any] = {
        "distribution": status.distribution,
        "version": status.version,
        "code": status.code,
    }
    if status.state == "failed":
        return [
            Finding(
                level="error",
                subject=status.name,
                message=status.reason or "failed.",
                remedy=status.remedy,
                data=data,
            )
        ]
    offered = ", ".join(item.partition(":")[0] for item in status.provides)
    taken = f" in {status.seconds * 1000:.0f} ms" if status.seconds is not None else ""
    data |= {"provides": list(status.provides), "seconds": status.seconds}
    found = [
        Finding(
            level="ok",
            subject=status.name,
            message=f"{source}: {offered}; imported{taken}.",
            data=data,
        )
    ]
    if status.slow:
        found.append(
            Finding(
                level="warning",
                subject=status.name,
                message=f"{source} is slow: {status.slowness}",
                remedy="Its author should import what is heavy in the factory's module.",
                data=data | {"heavy": list(status.heavy)},
            )
        )
    return found


def _own_findings(probes: Sequence[Probe]) -> list[Finding]:
    """What plugins say of themselves; one with several names says it once."""
    found: dict[str, Finding] = {}
    for status in probes:
        for finding in status.findings:
            found.setdefault(f"{status.distribution} {finding.subject} {finding.message}", finding)
    return list(found.values())


def _models(found: Configured) -> list[Finding]:
    return [
        finding if finding.subject == model.name else _renamed(finding, model.name)
        for model in found.models
        for finding in model.findings
    ]


def _renamed(finding: Finding, model: str) -> Finding:
    return msgspec.structs.replace(finding, subject=f"{model}: {finding.subject}")


def _error(subject: str, error: ThemisError) -> Finding:
    return Finding(level="error", subject=subject, message=error.message, remedy=error.remedy)
