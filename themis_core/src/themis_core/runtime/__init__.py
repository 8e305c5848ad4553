"""The runtime: models, the way of a request, and how both are opened."""

from themis_core.runtime.blocking import BlockingRuntime
from themis_core.runtime.hooks import HookStats
from themis_core.runtime.models import ModelSource, ModelStatus
from themis_core.runtime.opening import open  # noqa: A004 - re-exported under the name people use.
from themis_core.runtime.reload import ReloadReport
from themis_core.runtime.runtime import Runtime

__all__ = [
    "BlockingRuntime",
    "HookStats",
    "ModelSource",
    "ModelStatus",
    "ReloadReport",
    "Runtime",
    "open",
]
