"""The command `themis`. The one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import click

from themis_core import __version__
from themis_core.errors import ThemisError
from themis_core.suggest import did_you_mean

COMMAND_GROUP = "themis.commands"
EXIT_FAILURE = 1
EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130

_CONFIGURATION_CODES = frozenset(
    {
        "config_invalid",
        "plugin_not_found",
        "plugin_conflict",
        "plugin_failed",
        "plugin_incompatible",
    }
)

_OWN = {
    "run": "themis_core.cli.run:run",
    "chat": "themis_core.cli.chat:chat",
    "serve": "themis_core.cli.serve:serve",
    "worker": "themis_core.cli.worker:worker",
    "bench": "themis_core.cli.bench:bench",
    "plugins": "themis_core.cli.plugins:plugins",
    "config": "themis_core.cli.config:config",
}


class Commands(click.Group):
    """The core's commands, and those of plugins (entry points of the group `themis.commands`).

    A plugin's command is imported when it is used, or described; if that fails, the others stay.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_OWN, *sorted(set(_plugin_commands()) - set(_OWN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OWN:
            return _import(_OWN[cmd_name])
        target = _plugin_commands().get(cmd_name)
        return None if target is None else _plugin_command(cmd_name, target)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            hint = did_you_mean(args[0], self.list_commands(ctx)) or "See: themis --help."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)


def _plugin_commands() -> dict[str, str]:
    return {e.name: e.value for e in metadata.entry_points(group=COMMAND_GROUP)}


def _import(target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def _plugin_command(name: str, target: str) -> click.Command:
    try:
        return _import(target)
    # Foreign code, `sys.exit` included: the other commands must still work.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        reason = f"its plugin cannot be imported: {error!r}"
        return click.Command(name, help=f"Broken: {reason}.", callback=_broken(name, reason))


def _broken(name: str, reason: str) -> Callable[[], None]:
    def fail() -> None:
        raise click.ClickException(f"The command {name!r} is broken: {reason}.")

    return fail


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="themis")
@click.option("-v", "--verbose", count=True, help="Log more; twice for everything.")
def themis(verbose: int) -> None:
    """Run large language models: locally or remotely, from plugins, by one configuration file.

    Without a configuration, the bundled tiny model answers.
    """
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    wants_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        result: Any = themis.main(args=arguments, prog_name="themis", standalone_mode=False)
    except ThemisError as error:
        _print_error(error, wants_json)
        return EXIT_CONFIGURATION if error.code in _CONFIGURATION_CODES else EXIT_FAILURE
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as with `themis run … | head`.
        sys.stderr.close()
        return EXIT_FAILURE
    return result if isinstance(result, int) else 0


def _print_error(error: ThemisError, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": error.to_dict()}))
    else:
        click.echo(f"{click.style('Error', fg='red', bold=True)} [{error.code}]: {error}", err=True)
