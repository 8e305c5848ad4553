"""A sign of life on the terminal while something takes long. Scripts never see it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Show that a model is being loaded, and for how long, on a terminal's standard error."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    label = f"Loading {model or 'the model'}"
    spinner = threading.Thread(target=_spin, args=(label, done), name="themis-progress")
    spinner.start()
    try:
        yield
    finally:
        done.set()
        spinner.join()


def _spin(label: str, done: threading.Event) -> None:
    start = time.monotonic()
    step = 0
    # Nothing is drawn for what is over at once.
    while not done.wait(0.15):
        frame = _FRAMES[step % len(_FRAMES)]
        click.echo(f"\r{frame} {label} … {time.monotonic() - start:.1f} s", nl=False, err=True)
        step += 1
    if step:
        click.echo("\r\033[K", nl=False, err=True)
