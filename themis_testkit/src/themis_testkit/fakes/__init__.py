"""Stand-ins for tests, and small real plugins: a cache, a quota, a validator, a transport."""

from themis_testkit.fakes.banned_words import BannedWords
from themis_testkit.fakes.clock import VirtualClock
from themis_testkit.fakes.lru_cache import LruCache
from themis_testkit.fakes.memory_transport import LossyTransport, MemoryTransport
from themis_testkit.fakes.policies import FakeCache, FakeQuota, FakeReservation, FakeValidator
from themis_testkit.fakes.scripted import Hold, Script, ScriptedBackend, Step, say
from themis_testkit.fakes.token_quota import TokenQuota

__all__ = [
    "BannedWords",
    "FakeCache",
    "FakeQuota",
    "FakeReservation",
    "FakeValidator",
    "Hold",
    "LossyTransport",
    "LruCache",
    "MemoryTransport",
    "Script",
    "ScriptedBackend",
    "Step",
    "TokenQuota",
    "VirtualClock",
    "say",
]
