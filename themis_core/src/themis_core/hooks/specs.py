"""The hooks: one for each family of plugins, and the lifecycle events."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pluggy

from themis_core.hooks.descriptors import (
    BackendPlugin,
    BundledModel,
    CachePlugin,
    Descriptor,
    FrontDoorPlugin,
    QuotaPlugin,
    TransportPlugin,
    ValidatorPlugin,
)
from themis_core.hooks.findings import Finding
from themis_core.messages import ModelInfo

PROJECT = "themis"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# Family name → the class of its descriptors. The hook of a family is `themis_<family>`.
FAMILIES: dict[str, type[Descriptor] | type[BundledModel]] = {
    "backends": BackendPlugin,
    "transports": TransportPlugin,
    "caches": CachePlugin,
    "quotas": QuotaPlugin,
    "validators": ValidatorPlugin,
    "front_doors": FrontDoorPlugin,
    "models": BundledModel,
}


@hookspec
def themis_backends() -> Sequence[BackendPlugin]:
    """Backends: what generates."""
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_transports() -> Sequence[TransportPlugin]:
    """Transports: what carries a backend across a boundary."""
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_caches() -> Sequence[CachePlugin]:
    """Response caches."""
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_quotas() -> Sequence[QuotaPlugin]:
    """Quotas: who may use how much."""
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_validators() -> Sequence[ValidatorPlugin]:
    """Validators of prompts and answers."""
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_front_doors() -> Sequence[FrontDoorPlugin]:
    """Servers through which requests come in."""
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_models() -> Sequence[BundledModel]:
    """Models that come as package data."""
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_model_started(model: str, info: ModelInfo) -> None:
    """A model has been loaded and takes requests."""


@hookspec
def themis_model_stopped(model: str) -> None:
    """A model has been unloaded."""


@hookspec
def themis_diagnose() -> Sequence[Finding]:
    """What `themis doctor` should tell of this plugin's libraries: versions, build, devices.

    Called in a child process with a time limit, so it may load what is native.
    """
    raise AssertionError("a hook specification is never called")


@hookspec
def themis_diagnose_model(backend: str, settings: msgspec.Struct) -> Sequence[Finding]:
    """What can be told of a configured model without loading it: its files, its memory.

    Called as `themis_diagnose`, for each model whose backend this plugin provides.
    """
    raise AssertionError("a hook specification is never called")
