"""Stand-ins for tests: they do what they are told, and remember what was asked of them."""

from themis_testkit.fakes.policies import FakeCache, FakeQuota, FakeReservation, FakeValidator
from themis_testkit.fakes.scripted import Hold, Script, ScriptedBackend, Step, say

__all__ = [
    "FakeCache",
    "FakeQuota",
    "FakeReservation",
    "FakeValidator",
    "Hold",
    "Script",
    "ScriptedBackend",
    "Step",
    "say",
]
