"""`themis plugins`: what is installed, what loads, and what does not and why."""

from __future__ import annotations

import json

import click
import msgspec

from themis_core.cli.options import json_option
from themis_core.plugins import PluginStatus, Registry

_COLOURS = {"loaded": "green", "failed": "red", "not selected": "yellow"}


@click.command()
@json_option
@click.option("--no-load", is_flag=True, help="Read metadata only; import nothing.")
def plugins(as_json: bool, no_load: bool) -> None:
    """List all installed plugins; one that fails stops no other."""
    registry = Registry()
    if not no_load:
        registry.load_all()
    report = registry.report()
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _print(report)


def _print(report: list[PluginStatus]) -> None:
    if not report:
        click.echo("No plugins are installed.")
        return
    width = max(len(status.name) for status in report)
    for status in report:
        state = click.style(f"{status.state:12}", fg=_COLOURS[status.state])
        families = ", ".join(item.partition(":")[0] for item in status.provides)
        source = f"{status.distribution} {status.version}"
        click.echo(f"{status.name:{width}}  {state}  {source}  {families}".rstrip())
        if status.reason:
            click.echo(f"{'':{width}}  [{status.code}] {status.reason}")
