"""What plugins are installed, read from metadata alone: nothing is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ENTRY_POINT_GROUP = "themis"
CORE_DISTRIBUTION = "themis-core"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An entry point of the group `themis`.

    `name` is what configurations call the plugin, `module` what implements it. `requires_core` is
    the range of themis-core versions that its distribution declares: its plugin-API range.
    """

    name: str
    module: str
    distribution: str
    version: str
    requires_core: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


def discover(distributions: Iterable[metadata.Distribution] | None = None) -> list[Candidate]:
    """All candidates, sorted by name. A distribution that is installed twice counts once."""
    found: dict[tuple[str, str], Candidate] = {}
    for distribution in metadata.distributions() if distributions is None else distributions:
        entry_points = [e for e in distribution.entry_points if e.group == ENTRY_POINT_GROUP]
        if not entry_points:
            continue
        name = canonicalize_name(distribution.metadata["Name"])
        for entry_point in entry_points:
            # The first one on the path is the one that an import would find.
            found.setdefault(
                (entry_point.name, name),
                Candidate(
                    name=entry_point.name,
                    module=entry_point.value,
                    distribution=name,
                    version=distribution.version,
                    requires_core=_core_range(distribution),
                ),
            )
    return sorted(found.values(), key=lambda candidate: (candidate.name, candidate.distribution))


def _core_range(distribution: metadata.Distribution) -> str:
    for text in distribution.requires or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # Its installer has complained; it says nothing about us.
        if canonicalize_name(requirement.name) == CORE_DISTRIBUTION:
            return str(requirement.specifier)
    return ""
