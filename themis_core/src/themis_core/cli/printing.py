"""An answer on the terminal, as it comes."""

from __future__ import annotations

import click

from themis_core.messages import Delta


class Printer:
    """The answer goes to standard output, what the model thinks before it to standard error."""

    def __init__(self) -> None:
        self._thinking = False

    def show(self, delta: Delta) -> None:
        """Print the new text."""
        if delta.reasoning:
            self._thinking = True
            click.echo(click.style(delta.reasoning, dim=True), nl=False, err=True)
        if delta.text:
            if self._thinking:
                self._thinking = False
                click.echo(err=True)
            click.echo(delta.text, nl=False)
