"""Trying plugins out in child processes: one that crashes or hangs is reported, not suffered."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import msgspec

from themis_core.errors import PluginFailed, ThemisError
from themis_core.hooks import Descriptor, Finding
from themis_core.plugins.children import ChildResult, Reporter, run_child
from themis_core.plugins.discovery import Candidate, discover
from themis_core.plugins.guarded import make
from themis_core.plugins.registry import PluginStatus, Registry

DEFAULT_LIMIT = 20.0  # Seconds for one plugin; the native libraries of a good one take one or two.
SLOW = 1.0  # Seconds for an import: what only describes an engine takes milliseconds.
# What an import of a description must not bring along.
HEAVY = ("jax", "llama_cpp", "onnxruntime", "tensorflow", "torch", "transformers", "vllm")
_CHILDREN = 2  # At once: each one is busy with importing.
_MADE_WITHOUT_A_RUNTIME = {"backends", "caches", "quotas", "transports", "validators"}
_DOING = {
    "load": "while it was imported",
    "settings": "in its settings class",
    "factory": "in its factory",
    "diagnose": "in themis_diagnose",
}


class Probe(PluginStatus, frozen=True, kw_only=True):
    """What became of a plugin in its child process.

    `seconds` is what its import took. `heavy` names the libraries that it imported then.
    """

    remedy: str | None = None
    seconds: float | None = None
    heavy: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def slow(self) -> bool:
        """True if the import took long, or brought something along that will."""
        return bool(self.heavy) or (self.seconds or 0) > SLOW

    @property
    def slowness(self) -> str:
        """What makes its import slow, as a sentence."""
        brought = f", with {', '.join(self.heavy)}" if self.heavy else ""
        return f"importing its description takes {(self.seconds or 0) * 1000:.0f} ms{brought}."


def probe(
    candidates: Iterable[Candidate] | None = None,
    *,
    lock: str | None = None,
    thorough: bool = True,
    limit: float = DEFAULT_LIMIT,
) -> list[Probe]:
    """Try every plugin in a child of its own, with a time limit for each; in order of names.

    `thorough` makes what can be made without settings, and asks what the plugin itself finds;
    otherwise it is only imported. Raises nothing that a plugin does.
    """
    found: dict[str, list[Candidate]] = {}
    for candidate in discover() if candidates is None else candidates:
        found.setdefault(candidate.name, []).append(candidate)

    def one(name: str) -> list[Probe]:
        request = {
            "name": name,
            "candidates": msgspec.to_builtins(found[name]),
            "lock": lock,
            "thorough": thorough,
        }
        result = run_child("themis_core.plugins.probe:in_child", request, limit)
        return _probes(found[name], result)

    with ThreadPoolExecutor(_CHILDREN) as pool:
        return [status for probes in pool.map(one, sorted(found)) for status in probes]


def _probes(candidates: list[Candidate], result: ChildResult) -> list[Probe]:
    stage = "load"
    for report in result.reports:
        stage = report.get("stage", stage)
        if "probes" in report:
            found = msgspec.convert(report["probes"], list[Probe])
            if result.ending is None:
                return found
    reason = f"{result.ending or 'said nothing'} {_DOING[stage]}"
    last = result.stderr.splitlines()[-1:] if result.ending else []
    return [
        Probe(
            name=c.name,
            distribution=c.distribution,
            version=c.version,
            module=c.module,
            state="failed",
            code=PluginFailed.code,
            reason=f"Plugin {c.name!r} of {c.distribution} {c.version} {reason}."
            + "".join(f" Its last words: {line[:200]}" for line in last),
            remedy="Update or uninstall that distribution; do not configure it.",
        )
        for c in candidates
    ]


def in_child(request: dict[str, Any], fd: int) -> None:
    """The child's side of `probe`."""
    reporter = Reporter(fd)
    logging.disable(logging.WARNING)  # That an import takes long is said by the parent.
    reporter.report(stage="load")
    name = request["name"]
    registry = Registry(msgspec.convert(request["candidates"], list[Candidate]))
    error: ThemisError | None = None
    findings: list[Finding] = []
    before = set(sys.modules)
    began = time.perf_counter()
    seconds, heavy = None, []
    try:
        registry.obey_lock(request["lock"])
        registry.load(name)
        seconds = time.perf_counter() - began
        heavy = sorted(set(HEAVY) & (set(sys.modules) - before))
        if request["thorough"]:
            _examine(registry, name, reporter)
            reporter.report(stage="diagnose")
            findings = registry.diagnose(name)
    except ThemisError as raised:
        error = raised
    reporter.report(
        probes=[
            msgspec.to_builtins(_probe(status, error, seconds, heavy, findings))
            for status in registry.report()
        ]
    )
    reporter.done()


def _probe(
    status: PluginStatus,
    error: ThemisError | None,
    seconds: float | None,
    heavy: list[str],
    findings: list[Finding],
) -> Probe:
    fields = msgspec.structs.asdict(status)
    if error is not None and status.state != "failed":
        fields |= {"state": "failed", "code": error.code}
    if error is not None and (status.reason is None or status.reason == str(error)):
        fields |= {"reason": error.message}
    return Probe(
        **fields,
        remedy=error.remedy if error else None,
        seconds=seconds,
        heavy=tuple(heavy),
        findings=tuple(findings),
    )


def _examine(registry: Registry, name: str, reporter: Reporter) -> None:
    """Settings classes and factories, as far as they can be tried without a configuration."""
    for family, descriptor in registry.descriptors(name).items():
        if not isinstance(descriptor, Descriptor):
            continue
        reporter.report(stage="settings")
        settings = _default_settings(registry, descriptor)
        reporter.report(stage="factory")
        if settings is not None and family in _MADE_WITHOUT_A_RUNTIME:
            make(descriptor, settings)


def _default_settings(registry: Registry, descriptor: Descriptor) -> msgspec.Struct | None:
    """The settings with nothing configured; None if something must be."""
    kind = descriptor.settings
    try:
        if any(field.required for field in msgspec.structs.fields(kind)):
            return None
        return kind()
    except KeyboardInterrupt:
        raise
    # Foreign code: whatever it raises is this plugin's failure.
    except BaseException as error:  # noqa: BLE001
        _settings_failed(registry, descriptor, error)


def _settings_failed(registry: Registry, descriptor: Descriptor, error: BaseException) -> NoReturn:
    status = next(s for s in registry.report() if s.name == descriptor.name)
    kind = descriptor.settings
    raise PluginFailed(
        f"Plugin {descriptor.name!r} of {status.distribution} {status.version} has a settings "
        f"class, {getattr(kind, '__name__', kind)}, that raises: {error!r}.",
        plugin=descriptor.name,
        remedy="Update or uninstall that distribution.",
    ) from error
