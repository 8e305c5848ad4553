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
            "cache",
            "cancelling",
            "choices",
            "company",
            "constraints",
            "embeddings",
            "examine",
            "extras",
            "kit",
            "leftovers",
            "lifecycle",
            "quota",
            "refusals",
            "resuming",
            "reuse",
            "runner",
            "runner_forward",
            "runner_limits",
            "runner_memory",
            "runner_sequences",
            "runner_states",
            "sampling",
            "statistics",
            "stopping",
            "tools",
            "transport",
            "transport_crossing",
            "transport_ends",
            "transport_requests",
            "transport_servers",
            "validator",
            "validator_output",
        )
    )
)

from themis_testkit.conformance.backend import BackendConformance  # noqa: E402
from themis_testkit.conformance.base import BackendFactory, ConformanceBase, eventually  # noqa: E402
from themis_testkit.conformance.cache import CacheConformance, CacheFactory  # noqa: E402
from themis_testkit.conformance.examine import Verdict, examine, judge  # noqa: E402
from themis_testkit.conformance.quota import QuotaConformance, QuotaFactory  # noqa: E402
from themis_testkit.conformance.runner import RunnerConformance, RunnerFactory  # noqa: E402
from themis_testkit.conformance.transport import (  # noqa: E402
    TransportConformance,
    TransportFactory,
)
from themis_testkit.conformance.validator import (  # noqa: E402
    ValidatorConformance,
    ValidatorFactory,
)

__all__ = [
    "BackendConformance",
    "BackendFactory",
    "CacheConformance",
    "CacheFactory",
    "ConformanceBase",
    "QuotaConformance",
    "QuotaFactory",
    "RunnerConformance",
    "RunnerFactory",
    "TransportConformance",
    "TransportFactory",
    "ValidatorConformance",
    "ValidatorFactory",
    "Verdict",
    "eventually",
    "examine",
    "judge",
]
