"""All checks of the `Transport` contract: what crosses it is what an inline backend would give."""

from __future__ import annotations

from themis_testkit.conformance.transport_crossing import CrossingChecks
from themis_testkit.conformance.transport_ends import TransportFactory
from themis_testkit.conformance.transport_requests import RequestChecks
from themis_testkit.conformance.transport_servers import ServerChecks

__all__ = ["TransportConformance", "TransportFactory"]


class TransportConformance(CrossingChecks, RequestChecks, ServerChecks):
    """Subclass it, and give it the fixture `transport_factory`.

    The backend at the far end is a scripted one, so the checks know what must arrive.
    """
