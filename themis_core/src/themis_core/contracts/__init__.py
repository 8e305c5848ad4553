"""What plugins implement: five small protocols. Each method says what it raises and leaves."""

from themis_core.contracts.backend import Backend
from themis_core.contracts.budget import CACHE_BUDGET, Budget, OnFailure
from themis_core.contracts.cache import Cache
from themis_core.contracts.quota import Quota, Reservation
from themis_core.contracts.transport import BackendServer, Transport
from themis_core.contracts.validator import OutputCheck, Validator

__all__ = [
    "CACHE_BUDGET",
    "Backend",
    "BackendServer",
    "Budget",
    "Cache",
    "OnFailure",
    "OutputCheck",
    "Quota",
    "Reservation",
    "Transport",
    "Validator",
]
