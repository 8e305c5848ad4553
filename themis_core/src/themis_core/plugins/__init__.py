"""Finding plugins from metadata, and loading those that are named, each one guarded."""

from themis_core.plugins.discovery import ENTRY_POINT_GROUP, Candidate, discover
from themis_core.plugins.registry import PluginStatus, Registry, make

__all__ = ["ENTRY_POINT_GROUP", "Candidate", "PluginStatus", "Registry", "discover", "make"]
