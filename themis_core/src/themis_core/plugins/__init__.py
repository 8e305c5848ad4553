"""Finding plugins from metadata, and loading those that are named, each one guarded."""

from themis_core.plugins.children import ChildResult, Reporter, run_child
from themis_core.plugins.discovery import ENTRY_POINT_GROUP, Candidate, discover
from themis_core.plugins.guarded import make, owner_of
from themis_core.plugins.lock import LOCK_NAME, Guard, lock_beside, read_lock, write_lock
from themis_core.plugins.probe import Probe, probe
from themis_core.plugins.registry import PluginStatus, Registry

__all__ = [
    "ENTRY_POINT_GROUP",
    "LOCK_NAME",
    "Candidate",
    "ChildResult",
    "Guard",
    "PluginStatus",
    "Probe",
    "Registry",
    "Reporter",
    "discover",
    "lock_beside",
    "make",
    "owner_of",
    "probe",
    "read_lock",
    "run_child",
    "write_lock",
]
