"""Closing several things: every one is closed, whatever the others raise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

# What it is called in a message, and how it is closed.
Part = tuple[str, Callable[[], Awaitable[None]]]


async def close_in_order(parts: Sequence[Part]) -> None:
    """Close one after another. Raises the first error, with notes on the others, at the end."""
    errors: list[tuple[str, BaseException]] = []
    for name, close in parts:
        try:
            await close()
        # Raised below: not even a cancellation may leave the later ones open.
        except BaseException as error:  # noqa: BLE001
            errors.append((name, error))
    _raise_first(errors)


async def close_at_once(parts: Sequence[Part]) -> None:
    """Close concurrently. Raises the first error, with notes on the others, at the end."""
    results = await asyncio.gather(*(close() for _, close in parts), return_exceptions=True)
    names = [name for name, _ in parts]
    found = zip(names, results, strict=True)
    _raise_first([(name, error) for name, error in found if isinstance(error, BaseException)])


def _raise_first(errors: list[tuple[str, BaseException]]) -> None:
    if not errors:
        return
    # A cancellation goes before everything: who cancelled must learn that it was obeyed.
    (name, first), *others = sorted(errors, key=lambda entry: isinstance(entry[1], Exception))
    first.add_note(f"Raised while closing {name}.")
    for name, error in others:
        first.add_note(f"Closing {name} failed too: {error!r}")
    raise first
