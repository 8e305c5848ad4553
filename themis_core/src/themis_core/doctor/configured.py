"""What is configured, found out in a child process: checking it imports the plugins it names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from themis_core.config import Config, ModelConfig, PluginConfig, load
from themis_core.config.secrets import resolve
from themis_core.config.settings import DEFAULT_PORT, WORKER_TRANSPORT, ServerKeys
from themis_core.config.sources import FILE_NAME
from themis_core.errors import ConfigInvalid, ThemisError
from themis_core.hooks import Finding
from themis_core.plugins import Registry, Reporter, make, run_child

_PATH_KEYS = ("path", "draft_path")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A configured model: the files that its settings name, and what its backend says of it."""

    name: str
    backend: str
    paths: dict[str, str]
    findings: list[Finding]


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """`ready` is false if the configuration cannot be used; then `problems` says why."""

    source: str | None
    ready: bool
    problems: list[Finding]
    models: list[Model] = []
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT


def configured(path: str | None, limit: float) -> Configured:
    """Read the configuration and try what it configures, in a child process."""
    request = {"config": path}
    result = run_child("themis_core.doctor.configured:in_child", request, limit)
    stage = "the configuration was read"
    for report in result.reports:
        stage = report.get("stage", stage)
        if "configured" in report:
            return msgspec.convert(report["configured"], Configured)
    last = "".join(f" Its last words: {line[:200]}" for line in result.stderr.splitlines()[-1:])
    problem = Finding(
        level="error",
        subject="configuration",
        message=f"Reading it {result.ending or 'told nothing'} while {stage}.{last}",
        remedy="The section on plugins names the one that does so; do not configure it.",
    )
    return Configured(source=path, ready=False, problems=[problem])


def in_child(request: dict[str, Any], fd: int) -> None:
    """The child's side of `configured`."""
    reporter = Reporter(fd)
    reporter.report(stage="the plugins that it names were imported")
    registry = Registry()
    try:
        config = load(request["config"], registry)
    except ThemisError as error:
        found = Configured(source=_file(request), ready=False, problems=_problems(error))
    else:
        found = _found(config, registry, reporter)
    reporter.report(configured=msgspec.to_builtins(found))
    reporter.done()


def _file(request: dict[str, Any]) -> str | None:
    """The file that could not be used, if there is one."""
    chosen = request["config"] or os.environ.get("THEMIS_CONFIG") or FILE_NAME
    return chosen if Path(chosen).is_file() else None


def _found(config: Config, registry: Registry, reporter: Reporter) -> Configured:
    models = []
    for model in config.models.values():
        reporter.report(stage=f"model {model.name!r} was examined")
        models.append(_model(model, config, registry))
    problems = []
    for key, plugin in _others(config):
        reporter.report(stage=f"{key} was made")
        problems += _made(key, plugin, config)[1]
    keys = config.server.keys if config.server else ServerKeys()
    if not problems:
        message = f"No problems. Models: {', '.join(config.models)}."
        problems = [Finding(level="ok", subject=config.source, message=message)]
    return Configured(
        source=config.source if Path(config.source).is_file() else None,
        ready=True,
        problems=problems,
        models=models,
        host=keys.host,
        port=keys.port,
    )


def _problems(error: ThemisError, subject: str = "configuration") -> list[Finding]:
    if isinstance(error, ConfigInvalid) and error.problems:
        return [
            Finding(level="error", subject=subject, message=str(problem))
            for problem in error.problems
        ]
    message = f"[{error.code}] {error.message}"
    return [Finding(level="error", subject=subject, message=message, remedy=error.remedy)]


def _others(config: Config) -> list[tuple[str, PluginConfig]]:
    """Everything but models and the front door, which needs a runtime."""
    found: list[tuple[str, PluginConfig]]
    found = [(f"validators.{name}", plugin) for name, plugin in config.validators.items()]
    if config.quota is not None:
        found.append(("quota", config.quota))
    return found


def _made(key: str, plugin: PluginConfig, config: Config) -> tuple[Any, list[Finding]]:
    """The settings with their secrets; and what is wrong, if the plugin cannot be made of them."""
    try:
        settings = resolve(plugin.settings, key, config.places, config.source)
        make(plugin.descriptor, settings)
    except ThemisError as error:
        return None, _problems(error, key)
    return settings, []


def _model(model: ModelConfig, config: Config, registry: Registry) -> Model:
    """Makes the backend, which loads nothing yet, and asks its plugin about the model."""
    backend = model.descriptor.name
    settings, findings = _made(f"models.{model.name}", model, config)
    if settings is not None:
        try:
            findings = registry.diagnose(backend, backend, settings)
        except ThemisError as error:
            findings = _problems(error, model.name)
        if not any(finding.subject == "memory" for finding in findings):
            message = f"Not known: the backend {backend} does not say what it will need."
            findings.append(Finding(level="note", subject="memory", message=message))
    if model.keys.isolation == "worker":
        findings.append(_isolated(model))
    return Model(name=model.name, backend=backend, paths=_paths(model), findings=findings)


def _isolated(model: ModelConfig) -> Finding:
    keys = model.keys.worker
    after = "goes on with them on the next" if keys.resume else "ends them with an error"
    return Finding(
        level="ok",
        subject="worker",
        message=f"Runs in a process of its own, over {WORKER_TRANSPORT}. If that dies with "
        f"requests in flight, Themis {after}; {keys.crash_limit} crashes in "
        f"{keys.crash_window:g} s are a crash loop. Its log is the server's logger themis.worker.",
        data=msgspec.structs.asdict(keys),
    )


def _paths(model: ModelConfig) -> dict[str, str]:
    named = {key: getattr(model.settings, key, None) for key in _PATH_KEYS}
    adapters = getattr(model.settings, "adapters", None)
    for name, given in (adapters if isinstance(adapters, dict) else {}).items():
        named[f"adapters.{name}"] = getattr(given, "path", given)
    return {key: value for key, value in named.items() if isinstance(value, str) and value}
