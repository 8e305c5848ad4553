"""The factory of the backend `reference`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from themis_core.contracts import Backend
from themis_engine import EngineBackend
from themis_testkit.plugin import ReferenceSettings
from themis_testkit.reference.runner import ReferenceRunner


def create(settings: ReferenceSettings) -> Backend:
    """A backend that is not yet started; no file is read before `start`."""
    load = partial(
        ReferenceRunner,
        Path(settings.path),
        parallel=settings.parallel,
        kv_tokens=settings.kv_tokens,
    )
    return EngineBackend(load, backend="reference")
