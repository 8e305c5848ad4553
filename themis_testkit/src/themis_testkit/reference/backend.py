"""The factory of the backend `reference`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec

from themis_core.contracts import Backend
from themis_engine import EngineBackend, EngineOptions
from themis_engine.options import AdapterFile
from themis_testkit.plugin import ReferenceSettings
from themis_testkit.reference.runner import ReferenceRunner


def create(settings: ReferenceSettings) -> Backend:
    """A backend that is not yet started; no file is read before `start`."""
    load = partial(
        ReferenceRunner,
        Path(settings.path),
        parallel=settings.parallel,
        kv_tokens=settings.kv_tokens,
        prefix_sequences=settings.prefix_sequences,
    )
    adapters = {
        name: file if isinstance(file, str) else AdapterFile(**msgspec.structs.asdict(file))
        for name, file in settings.adapters.items()
    }
    options = EngineOptions(
        parallel=settings.parallel, adapters=adapters, adapter_choice=settings.adapter_choice
    )
    return EngineBackend(load, backend="reference", options=options)
