"""`themis lock`: which plugins may be loaded, and what their files must be."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from themis_core.cli.options import config_option, json_option
from themis_core.errors import ConfigInvalid
from themis_core.plugins import LOCK_NAME, discover, lock_beside, read_lock, write_lock


@click.command()
@config_option
@json_option
@click.option("--check", is_flag=True, help="Write nothing; compare what is installed.")
def lock(config_path: str | None, as_json: bool, check: bool) -> int:
    """Allow only the plugins that are installed now.

    Writes themis.lock beside the configuration; anything else is refused from then on. With
    --check, the exit code is 1 if anything differs from the lock.
    """
    return _check(config_path, as_json) if check else _write(config_path, as_json)


def _write(config_path: str | None, as_json: bool) -> int:
    path = lock_beside(config_path, must_exist=False)
    assert path is not None
    written = write_lock(path)
    if as_json:
        click.echo(json.dumps({"path": str(path), "distributions": list(written.distributions)}))
        return 0
    for name, found in written.distributions.items():
        kind = ", editable: its source as it is now" if found.editable else ""
        click.echo(f"{name} {found.version}: {len(found.files)} files{kind}")
    click.echo(f"{len(written.startup)} start-up files of the environment")
    click.echo(f"{path} is written. Anything else is refused from now on.")
    return 0


def _check(config_path: str | None, as_json: bool) -> int:
    path: Path | None = lock_beside(config_path)
    if path is None:
        raise ConfigInvalid(f"There is no {LOCK_NAME} to check.", remedy="Write it: themis lock.")
    differences = read_lock(path).differences(discover())
    if as_json:
        click.echo(
            json.dumps({"ok": not differences, "differences": msgspec.to_builtins(differences)})
        )
    else:
        for difference in differences:
            click.echo(str(difference))
        if not differences:
            click.echo(f"{path}: everything is as it was locked.")
    return 1 if differences else 0
