"""Names of people, places and things: half from lists, half made up, so that copying is learnt."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

_WORDS = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))

FIRST: list[str] = _WORDS["first"]
LAST: list[str] = _WORDS["last"]
CITIES: list[str] = _WORDS["cities"]
OBJECTS_EN: list[str] = _WORDS["objects_en"]
OBJECTS_DE: list[str] = _WORDS["objects_de"]
PLACES_EN: list[str] = _WORDS["places_en"]
PLACES_DE: list[str] = _WORDS["places_de"]
FOODS_EN: list[str] = _WORDS["foods_en"]
FOODS_DE: list[str] = _WORDS["foods_de"]
JOBS_EN: list[str] = _WORDS["jobs_en"]
JOBS_DE: list[str] = _WORDS["jobs_de"]
DAYS_EN: list[str] = _WORDS["days_en"]
DAYS_DE: list[str] = _WORDS["days_de"]
_ONSETS: list[str] = _WORDS["onsets"]
_VOWELS: list[str] = _WORDS["vowels"]
_CODAS: list[str] = _WORDS["codas"]


def invented(rng: random.Random, shortest: int = 2, longest: int = 3) -> str:
    """A made-up word of some syllables with a capital letter."""
    count = rng.randint(shortest, longest)
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)]
    return "".join(parts).capitalize()


def first_name(rng: random.Random) -> str:
    """A given name."""
    return rng.choice(FIRST) if rng.random() < 0.5 else invented(rng)


def full_name(rng: random.Random) -> str:
    """A given name and a family name."""
    last = rng.choice(LAST) if rng.random() < 0.5 else invented(rng)
    return f"{first_name(rng)} {last}"


def city(rng: random.Random) -> str:
    """A town, sometimes of two words."""
    dice = rng.random()
    if dice < 0.45:
        return rng.choice(CITIES)
    if dice < 0.9:
        return invented(rng)
    return rng.choice(("New", "Bad", "San", "Port", "Saint")) + " " + invented(rng)


def digits(rng: random.Random, shortest: int = 2, longest: int = 5) -> str:
    """A number as text, without a leading zero."""
    length = rng.randint(shortest, longest)
    return str(rng.randint(10 ** (length - 1), 10**length - 1))
