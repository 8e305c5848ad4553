"""`themis config`: check the configuration, or show what is in force."""

from __future__ import annotations

import json

import click
import msgspec

from themis_core.cli.options import config_option, json_option
from themis_core.config import Config, effective, load
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry


@click.group()
def config() -> None:
    """Check or show the configuration."""


@config.command()
@config_option
@json_option
def check(config_path: str | None, as_json: bool) -> int:
    """Report all problems at once; the exit code is 2 if there are any."""
    try:
        loaded = load(config_path, Registry())
    except ConfigInvalid as error:
        if not as_json:
            raise
        click.echo(json.dumps({"ok": False, "problems": msgspec.to_builtins(error.problems)}))
        return 2
    if as_json:
        click.echo(json.dumps({"ok": True, "problems": []}))
    else:
        click.echo(f"{loaded.source}: no problems. Models: {', '.join(loaded.models)}.")
    return 0


@config.command()
@config_option
@json_option
def show(config_path: str | None, as_json: bool) -> None:
    """Show every effective value and where it came from; secrets are hidden."""
    loaded: Config = load(config_path, Registry())
    entries = effective(loaded)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(entries), indent=2))
        return
    width = max(len(entry.key) for entry in entries)
    for entry in entries:
        click.echo(f"{entry.key:{width}} = {json.dumps(entry.value):24}  # {entry.origin}")
