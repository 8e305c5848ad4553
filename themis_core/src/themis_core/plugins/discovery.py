"""What plugins are installed, read from metadata alone: nothing is imported here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from importlib import metadata

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ENTRY_POINT_GROUP = "themis"
CORE_DISTRIBUTION = "themis-core"

_log = logging.getLogger("themis.plugins")


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An entry point of a distribution, of the group `themis` unless another was asked for.

    `name` is what configurations call the plugin, `module` what implements it. `requires_core` is
    the range of themis-core versions that its distribution declares: its plugin-API range.
    `root` is the folder in which the distribution is installed.
    """

    name: str
    module: str
    distribution: str
    version: str
    requires_core: str = ""
    root: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


def discover(
    distributions: Iterable[metadata.Distribution] | None = None, group: str = ENTRY_POINT_GROUP
) -> list[Candidate]:
    """All candidates, sorted by name. A distribution that is installed twice counts once.

    One whose metadata cannot be read is left out, and named in the log.
    """
    found: dict[tuple[str, str], Candidate] = {}
    for distribution in metadata.distributions() if distributions is None else distributions:
        try:
            candidates = list(_candidates(distribution, group))
        # A file that somebody broke can raise anything: its parsers do not agree on a class.
        except Exception as error:  # noqa: BLE001
            _log.warning("The plugins of %s cannot be read: %r.", _place(distribution), error)
            continue
        for candidate in candidates:
            # The first one on the path is the one that an import would find.
            found.setdefault((candidate.name, candidate.distribution), candidate)
    return sorted(found.values(), key=lambda candidate: (candidate.name, candidate.distribution))


def _candidates(distribution: metadata.Distribution, group: str) -> Iterator[Candidate]:
    entry_points = [entry for entry in distribution.entry_points if entry.group == group]
    if not entry_points:
        return
    name = canonicalize_name(distribution.metadata["Name"])
    for entry_point in entry_points:
        yield Candidate(
            name=entry_point.name,
            module=entry_point.value,
            distribution=name,
            version=distribution.version,
            requires_core=_core_range(distribution),
            root=str(distribution.locate_file("")),
        )


def _place(distribution: metadata.Distribution) -> str:
    # Its folder has the name that its metadata does not tell.
    return str(getattr(distribution, "_path", None) or distribution.locate_file(""))


def _core_range(distribution: metadata.Distribution) -> str:
    """All that it requires of themis-core here, optional extras left out."""
    ranges = []
    for text in distribution.requires or []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # Its installer has complained; it says nothing about us.
        if canonicalize_name(requirement.name) != CORE_DISTRIBUTION:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            ranges.append(str(requirement.specifier))
    return ",".join(filter(None, ranges))
