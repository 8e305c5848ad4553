"""`themis reload`: tell a running `themis serve` to read its configuration again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from themis_core.cli.options import json_option
from themis_core.cli.pid_file import Content, Outcome, read_pid_file
from themis_core.errors import ConfigInvalid

EXIT_REFUSED = 2
_POLL = 0.05  # seconds
_Wanted = Callable[[Content], bool]


@click.command()
@click.option(
    "--pid-file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The file that the server was started with.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to wait: models that are preloaded are loaded before the change.",
)
@json_option
def reload(pid_file: Path, timeout: float, as_json: bool) -> int:
    """Put the changed configuration in force, and wait until it is.

    Exit code 2: it was refused, for the reasons that are printed, and the old one stays in force.
    """
    deadline = time.monotonic() + timeout
    before = _when(pid_file, deadline, lambda content: content.ready)
    # The file is locked by the process whose id it tells, so the signal meets no other.
    os.kill(before.pid, signal.SIGHUP)
    after = _when(pid_file, deadline, lambda content: content.reloads > before.reloads)
    outcome = after.last or Outcome(ok=False, message="The server does not tell.")
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(outcome)))
    elif outcome.ok:
        click.echo(f"Reloaded; {outcome.message}.")
    else:
        reason = f"Refused, the old configuration stays in force [{outcome.code}]: "
        click.echo(reason + outcome.message, err=True)
    return 0 if outcome.ok else EXIT_REFUSED


def _when(path: Path, deadline: float, wanted: _Wanted) -> Content:
    while True:
        content = read_pid_file(path)
        if content is not None and wanted(content):
            return content
        if time.monotonic() > deadline:
            raise ConfigInvalid("The server has not answered in time.", remedy="See its log.")
        time.sleep(_POLL)
