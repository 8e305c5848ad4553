"""For authors of Themis plugins: conformance suites, fakes, strategies, and a numpy reference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from themis_testkit.conformance import (
        BackendConformance,
        CacheConformance,
        QuotaConformance,
        RunnerConformance,
        TransportConformance,
        ValidatorConformance,
        eventually,
    )
    from themis_testkit.fakes import (
        BannedWords,
        FakeCache,
        FakeQuota,
        FakeValidator,
        Hold,
        LossyTransport,
        LruCache,
        MemoryTransport,
        ScriptedBackend,
        TokenQuota,
        VirtualClock,
    )

__all__ = [
    "BackendConformance",
    "BannedWords",
    "CacheConformance",
    "FakeCache",
    "FakeQuota",
    "FakeValidator",
    "Hold",
    "LossyTransport",
    "LruCache",
    "MemoryTransport",
    "QuotaConformance",
    "RunnerConformance",
    "ScriptedBackend",
    "TokenQuota",
    "TransportConformance",
    "ValidatorConformance",
    "VirtualClock",
    "eventually",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: listing this package's plugin must not import pytest.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    suite = name.endswith("Conformance") or name == "eventually"
    home = "themis_testkit.conformance" if suite else "themis_testkit.fakes"
    return getattr(importlib.import_module(home), name)
