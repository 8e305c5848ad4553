"""The model that ships with Themis: small files that answer, and a function that finds them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["NAMES", "path"]

_DATA = Path(__file__).resolve().parent / "data"
_FILES = {
    "gguf-f16": "themis-tiny-f16.gguf",
    "gguf-q8_0": "themis-tiny-q8_0.gguf",
    "hf": "hf",
    "draft-gguf-f16": "themis-tiny-draft-f16.gguf",
    "draft-hf": "draft-hf",
    "lora-german-gguf": "lora-german.gguf",
    "lora-german-peft": "lora-german",
    "lora-json-gguf": "lora-json.gguf",
    "lora-json-peft": "lora-json",
}

NAMES: tuple[str, ...] = tuple(_FILES)
"""All names that :func:`path` knows."""


def path(name: str) -> Path:
    """Where the artefact ``name`` lies: a file for GGUF names, a folder for ``hf`` and ``peft``.

    Raises ``ValueError``, naming the known names, for any other name.
    """
    try:
        return _DATA / _FILES[name]
    except KeyError:
        known = ", ".join(NAMES)
        raise ValueError(f"the tiny model has no artefact {name!r}; known: {known}") from None
