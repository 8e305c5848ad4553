"""`themis plugins`: what is installed, what loads, and what does not and why."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
import msgspec

from themis_core.cli.options import config_option, json_option
from themis_core.plugins import PluginStatus, Probe, Registry, lock_beside, probe

_COLOURS = {"loaded": "green", "failed": "red", "not selected": "yellow"}


@click.command()
@config_option
@json_option
@click.option("--no-load", is_flag=True, help="Read metadata only; import nothing.")
def plugins(config_path: str | None, as_json: bool, no_load: bool) -> None:
    """List all installed plugins. Each one is tried in a process of its own."""
    if no_load:
        report: Sequence[PluginStatus] = Registry().report()
    else:
        lock = lock_beside(config_path)
        report = probe(lock=str(lock) if lock else None, thorough=False)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _print(report)


def _print(report: Sequence[PluginStatus]) -> None:
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
            remedy = status.remedy if isinstance(status, Probe) else None
            told = f"{status.reason} {remedy}" if remedy else status.reason
            click.echo(f"{'':{width}}  [{status.code}] {told}")
        if isinstance(status, Probe) and status.slow:
            click.echo(f"{'':{width}}  [slow] {status.slowness}")
