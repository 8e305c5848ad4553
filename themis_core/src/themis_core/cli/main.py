"""The command `themis`. The one place where errors become messages and exit codes."""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import sys
from typing import Any

import click

from themis_core import __version__
from themis_core.cli import plugin_commands
from themis_core.errors import ThemisError
from themis_core.suggest import did_you_mean

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
        "plugin_locked",
    }
)

# What --help says of the core's own commands, so that it imports none of them.
_OWN = {
    "run": ("themis_core.cli.run:run", 'Answer PROMPT (or standard input, if PROMPT is "-").'),
    "chat": ("themis_core.cli.chat:chat", "Talk with a model."),
    "serve": ("themis_core.cli.serve:serve", "Serve the configured models over HTTP."),
    "worker": ("themis_core.cli.worker:worker", "Host a model for other processes."),
    "bench": ("themis_core.cli.bench:bench", "Measure this host."),
    "plugins": ("themis_core.cli.plugins:plugins", "List all installed plugins."),
    "doctor": ("themis_core.cli.doctor:doctor", "Examine everything, and say what to do."),
    "lock": ("themis_core.cli.lock:lock", "Allow only the plugins that are installed now."),
    "config": ("themis_core.cli.config:config", "Make, check or show the configuration."),
    "reload": (
        "themis_core.cli.reload:reload",
        "Put the changed configuration in force, and wait until it is.",
    ),
    "new-plugin": ("themis_core.cli.new_plugin:new_plugin", "Make a plugin of your own."),
}


class Commands(click.Group):
    """The core's commands, and those of plugins (entry points of the group `themis.commands`).

    Nothing of a command is imported before it is used; if that fails, the others stay.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_OWN, *(name for name in plugin_commands.described() if name not in _OWN)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _OWN:
            return plugin_commands.load(cmd_name)
        module, _, attribute = _OWN[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in _OWN.items()]
        rows += [row for row in plugin_commands.described().items() if row[0] not in _OWN]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            hint = did_you_mean(args[0], self.list_commands(ctx)) or "See: themis --help."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)


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
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # A native crash then names the file it was in.
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
