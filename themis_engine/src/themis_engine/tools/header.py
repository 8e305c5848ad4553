"""Reading the beginning of a call, up to its arguments, from text that is still coming."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from themis_engine.tools.scan import ObjectScanner, members


class Read(Enum):
    """What else can become of a text: too little of it yet, or no call at all."""

    MORE = 1
    NO_CALL = 2


@dataclass(frozen=True, slots=True)
class Header:
    """A call's name, and where in the text its arguments begin.

    A call whose members are in another order is read as a whole: then `arguments` are complete, and
    `start` is behind the call.
    """

    name: str
    start: int
    id: str = ""
    arguments: str | None = None


_KEYS = ("arguments", "parameters")
_ATOMS: Sequence[str] = (
    *(r"\s*", r"\{", r"\s*", '"', "n", "a", "m", "e", '"', r"\s*", ":", r"\s*"),
    *('"', r"[^\"\\]+", '"', r"\s*", ",", r"\s*", '"', "[a-z]+", '"', r"\s*", ":", r"\s*", r"\{"),
)


def _could_become(atoms: Sequence[str]) -> re.Pattern[str]:
    """What matches each beginning of a text that matches the atoms in a row."""
    pattern = ""
    for atom in reversed(atoms):
        pattern = f"(?:{atom}{pattern})?"
    return re.compile(pattern + r"\Z")


_USUAL = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"([a-z]+)"\s*:\s*(?=\{)')
_USUAL_SO_FAR = _could_become(_ATOMS)
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?\s*(?=\{)")
_NAMED_SO_FAR = re.compile(r"[\w.\-\[\]\s]*\Z")


def read_json(text: str) -> Header | Read:
    """The header of a call that is a JSON object with a name and arguments."""
    usual = _USUAL.match(text)
    if usual is not None and usual[2] in _KEYS:
        return Header(usual[1], usual.end())
    if _USUAL_SO_FAR.match(text):
        return Read.MORE
    start = len(text) - len(text.lstrip())
    if start == len(text):
        return Read.MORE
    if text[start] != "{":
        return Read.NO_CALL
    end = ObjectScanner().end(text[start:])
    if end is None:
        return Read.MORE
    return _whole(text[start : start + end], start + end)


def read_named(text: str) -> Header | Read:
    """The header of a call that writes the name before its arguments."""
    match = _NAMED.match(text)
    if match is not None:
        return Header(match[1], match.end(), match[2] or "")
    return Read.MORE if _NAMED_SO_FAR.match(text) else Read.NO_CALL


def _whole(text: str, end: int) -> Header | Read:
    try:
        found = members(text)
        name = json.loads(found["name"])
        written = next((found[key] for key in _KEYS if key in found), "{}")
        if written.startswith('"'):  # Some models write the object into a string.
            written = json.loads(written)
            members(written)
    except (ValueError, KeyError, RecursionError):
        return Read.NO_CALL
    if not isinstance(name, str) or not written.startswith("{"):
        return Read.NO_CALL
    return Header(name, end, arguments=written)
