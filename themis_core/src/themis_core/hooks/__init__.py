"""How a plugin says what it offers: pluggy hooks that return descriptors.

A plugin is a module (named by an entry point of the group `themis`) with functions marked
`@hookimpl`. They are called once, at start-up; requests never pass through them.
"""

from themis_core.hooks.descriptors import (
    BackendPlugin,
    BundledModel,
    CachePlugin,
    Descriptor,
    FrontDoor,
    FrontDoorPlugin,
    NoSettings,
    QuotaPlugin,
    TransportPlugin,
    ValidatorPlugin,
)
from themis_core.hooks.findings import Finding, Level
from themis_core.hooks.specs import FAMILIES, PROJECT, hookimpl, hookspec

__all__ = [
    "FAMILIES",
    "PROJECT",
    "BackendPlugin",
    "BundledModel",
    "CachePlugin",
    "Descriptor",
    "Finding",
    "FrontDoor",
    "FrontDoorPlugin",
    "Level",
    "NoSettings",
    "QuotaPlugin",
    "TransportPlugin",
    "ValidatorPlugin",
    "hookimpl",
    "hookspec",
]
