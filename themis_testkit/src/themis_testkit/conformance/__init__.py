"""Suites that prove a plugin's keeping of a contract. Third parties subclass them.

class TestMine(BackendConformance):
    @pytest.fixture
    def backend_factory(self):
        return lambda: MyBackend(MySettings())
"""

import pytest

# Before the modules are imported: their asserts are to be explained as in the caller's own tests.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "adapters",
            "answers",
            "base",
            "cancelling",
            "choices",
            "company",
            "constraints",
            "embeddings",
            "extras",
            "lifecycle",
            "refusals",
            "resuming",
            "reuse",
            "sampling",
            "statistics",
            "stopping",
            "tools",
        )
    )
)

from themis_testkit.conformance.backend import BackendConformance  # noqa: E402
from themis_testkit.conformance.base import BackendFactory, ConformanceBase, eventually  # noqa: E402

__all__ = ["BackendConformance", "BackendFactory", "ConformanceBase", "eventually"]
