"""Packages for new plugins, from templates: what `themis new-plugin` writes."""

from themis_core.cli.scaffold.kinds import KINDS, Kind
from themis_core.cli.scaffold.package import check_name, package

__all__ = ["KINDS", "Kind", "check_name", "package"]
