"""`themis config`: make a configuration, check it, or show what is in force."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from themis_core.cli.options import config_option, json_option
from themis_core.config import Config, effective, load, resolved
from themis_core.config.sample import SCHEMA_FILE, sample
from themis_core.config.schema import json_schema
from themis_core.config.sources import FILE_NAME
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry


@click.group()
def config() -> None:
    """Make, check or show the configuration."""


@config.command()
@click.argument("path", default=FILE_NAME, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Write over files that are there.")
def init(path: Path, force: bool) -> None:
    """Write a sample file with every setting of the installed plugins, and its schema."""
    registry = Registry()
    files = {
        path: sample(registry),
        path.parent / SCHEMA_FILE: _schema_text(registry),
    }
    present = [str(file) for file in files if file.exists()]
    if present and not force:
        raise click.ClickException(f"{' and '.join(present)} is there already; --force replaces.")
    for file, text in files.items():
        _write(file, text)
        click.echo(f"Wrote {file}.")


@config.command()
@config_option
@json_option
@click.option("--no-secrets", is_flag=True, help="Do not look up references (env:, file:).")
def check(config_path: str | None, as_json: bool, no_secrets: bool) -> int:
    """Report all problems at once; the exit code is 2 if there are any."""
    try:
        loaded = load(config_path, Registry())
        if not no_secrets:
            resolved(loaded)
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


@config.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file.")
def schema(output: Path | None) -> None:
    """Print the JSON Schema of the file, for the plugins that are installed here."""
    text = _schema_text(Registry())
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{str(file)!r} cannot be written: {error}.") from error


def _schema_text(registry: Registry) -> str:
    return json.dumps(json_schema(registry), indent=2) + "\n"
