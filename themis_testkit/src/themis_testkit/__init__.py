"""For authors of Themis plugins: conformance suites, fakes, strategies, and a numpy reference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from themis_testkit.conformance import BackendConformance, eventually
    from themis_testkit.fakes import FakeCache, FakeQuota, FakeValidator, Hold, ScriptedBackend

__all__ = [
    "BackendConformance",
    "FakeCache",
    "FakeQuota",
    "FakeValidator",
    "Hold",
    "ScriptedBackend",
    "eventually",
]

_HOMES = dict.fromkeys(("BackendConformance", "eventually"), "themis_testkit.conformance")


def __getattr__(name: str) -> Any:
    # Imported when asked for: listing this package's plugin must not import pytest.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "themis_testkit.fakes")), name)
