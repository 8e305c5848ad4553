"""`themis doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import json
import sys

import click
import msgspec

from themis_core.cli.options import config_option, json_option
from themis_core.doctor import Section, examine, worst
from themis_core.hooks import Finding

_MARKS = {"ok": ("ok", "green"), "note": ("?", "cyan")}
_MARKS |= {"warning": ("!", "yellow"), "error": ("X", "red")}
_WIDE = 28  # Longer subjects stand on a line of their own.


@click.command()
@config_option
@json_option
@click.option(
    "--limit",
    type=click.FloatRange(min=1),
    default=20.0,
    show_default=True,
    help="Seconds that each plugin has.",
)
@click.option("--no-hashes", is_flag=True, help="Do not read model files through.")
def doctor(config_path: str | None, as_json: bool, limit: float, no_hashes: bool) -> int:
    """Examine everything, and say what to do.

    Plugins, native libraries, the configuration, model files, memory, the port, permissions. The
    exit code is 1 for any error; warnings alone leave it 0. Plugins run in child processes, so
    that one that crashes or hangs is reported.
    """
    sections: list[Section] = []
    for section in examine(config_path, limit=limit, hashes=not no_hashes, progress=_progress):
        sections.append(section)
        if not as_json:
            _print(section)
    level = worst(sections)
    if as_json:
        click.echo(
            json.dumps({"worst": level, "sections": msgspec.to_builtins(sections)}, indent=2)
        )
    else:
        count = sum(f.level == level for s in sections for f in s.findings)
        click.echo("All is well." if level in ("ok", "note") else f"{count} {level}(s).")
    return 1 if level == "error" else 0


def _print(section: Section) -> None:
    if section.findings:
        click.secho(section.title, bold=True)
    width = max((len(f.subject) for f in section.findings if len(f.subject) <= _WIDE), default=0)
    for finding in section.findings:
        _print_finding(finding, width)


def _print_finding(finding: Finding, width: int) -> None:
    mark, colour = _MARKS[finding.level]
    start = f"  {click.style(f'{mark:2}', fg=colour)} {finding.subject:{width}}"
    if len(finding.subject) > width:  # A path, mostly: what is said of it stands below.
        click.echo(start)
        start = f"     {'':{width}}"
    click.echo(f"{start}  {finding.message}")
    if finding.remedy:
        click.echo(f"     {'':{width}}  -> {finding.remedy}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text} …\r", nl=False, err=True)
