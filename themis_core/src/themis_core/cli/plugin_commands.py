"""Commands that plugins add: listed from metadata, imported, under guard, when they are used."""

from __future__ import annotations

import logging
from importlib import metadata

import click

COMMAND_GROUP = "themis.commands"

_log = logging.getLogger("themis.plugins")


def described() -> dict[str, str]:
    """The names of all of them, and from where each one is. Imports nothing of a plugin."""
    found: dict[str, list[str]] = {}
    for distribution in metadata.distributions():
        try:
            for entry_point in distribution.entry_points:
                if entry_point.group == COMMAND_GROUP:
                    owner = f"{distribution.metadata['Name']} {distribution.version}"
                    found.setdefault(entry_point.name, []).append(owner)
        # A file that somebody broke can raise anything, and --help must still be given.
        except Exception as error:  # noqa: BLE001
            _log.warning("The commands of an installed distribution cannot be read: %r.", error)
    return {name: f"From {' and '.join(owners)}." for name, owners in sorted(found.items())}


def load(name: str) -> click.Command | None:
    """The command of a plugin, or None if there is none of that name.

    As all plugins, it must be made for this core, and be as the lock says that lies in the working
    directory or beside `$THEMIS_CONFIG`. Raises what `Registry.load` raises.
    """
    # Late: `--help` does without all of these, and is quick.
    import msgspec

    from themis_core.errors import PluginConflict
    from themis_core.plugins import discover, guarded, lock_beside, read_lock

    found = [c for c in discover(group=COMMAND_GROUP) if c.name == name]
    if not found:
        return None
    lock = lock_beside(None)
    guard = None if lock is None else read_lock(lock)
    if guard is not None:
        # What the lock does not list is out of the way of what it does.
        found = [c for c in found if guard.allows(c)] or found
    if len(found) > 1:
        owners = " and ".join(f"{c.distribution} {c.version}" for c in found)
        raise PluginConflict(
            f"{owners} both provide a command called {name!r}.",
            plugin=name,
            remedy="Uninstall one of them.",
        )
    candidate = found[0]
    guarded.check_version(candidate)
    if guard is not None:
        guard.check(candidate)
    module, _, attribute = candidate.module.partition(":")
    imported = guarded.import_plugin(msgspec.structs.replace(candidate, module=module))
    command = getattr(imported, attribute, None)
    if not isinstance(command, click.Command):
        raise guarded.failed(candidate, f"has no click command at {candidate.module}.")
    return command
