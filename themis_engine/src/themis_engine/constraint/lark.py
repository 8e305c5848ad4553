"""Lark grammars in llguidance's dialect: guarding what it would read and then not do.

The language is llguidance's own; it refuses most of what it cannot do by line. Refused here is what
it can do and this engine cannot (special tokens, temperatures, captures), and JSON Schemas within a
grammar are written anew by `json_schema`, because llguidance skips keywords that it does not know.
"""

from __future__ import annotations

import json
import re
from importlib import resources

from themis_core.errors import InvalidRequest
from themis_engine.constraint import json_schema

MAX_SOURCE = 100_000
_OPTIONS = frozenset({"no_forcing", "ignore_once", "allow_initial_skip"})
_REFUSED_OPTIONS = frozenset({"capture", "max_tokens", "stop", "stop_capture", "temperature"})

_LEXEME = re.compile(
    r"""
    (?P<space> \s+ | (?://|\#)[^\n]* )
  | (?P<text> "(?:[^"\\\n]|\\.)*" i? )
  | (?P<regex> /(?![*/]) (?:[^/\\\n]|\\.)+ / [a-z]* )
  | (?P<json> %(?:json|llguidance|regex|lark) )
  | (?P<special> < [^<>\s]* > )
  | (?P<word> [%@]? [\w.-]+ )
  | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)


_TOKEN = re.compile(r"<\[[0-9]+\]>")


def names() -> list[str]:
    """The grammars that ship with Themis; `@name` stands for their source."""
    folder = resources.files(__package__).joinpath("grammars")
    return sorted(
        f.name.removesuffix(".lark") for f in folder.iterdir() if f.name.endswith(".lark")
    )


def source(value: str, path: str, *, tokens: bool = False) -> str:
    """The source that llguidance gets. Raises `InvalidRequest` with the line of what is refused.

    With `tokens`, special tokens may be written by their ids, `<[7]>`: for grammars of our own.
    """
    if value.startswith("@"):
        value = _shipped(value[1:].strip(), path)
    if len(value) > MAX_SOURCE:
        raise _refuse(path, f"The grammar is longer than {MAX_SOURCE} characters.")
    if "\0" in value or not value.strip():
        raise _refuse(path, "The grammar is empty, or holds a null character.")
    result: list[str] = []
    before: list[str] = []  # The parts so far, without spaces and comments.
    at = 0
    while match := _LEXEME.match(value, at):
        at = match.end()
        part = match[0]
        line = value.count("\n", 0, match.start()) + 1
        if match["json"]:
            part, at = _embedded(part, value, at, f"{path} (line {line})", path)
        elif match["special"] and not (tokens and _TOKEN.fullmatch(part)):
            raise _refuse(path, f"Line {line}: the special token {part} cannot be honoured.")
        elif not match["space"]:
            _check_option([*before[-2:], part], path, line)
            before.append(part)
        result.append(part)
    return "".join(result)


def _shipped(name: str, path: str) -> str:
    if name not in names():
        raise _refuse(path, f"There is no grammar named {name!r}.", f"Known: {', '.join(names())}.")
    file = resources.files(__package__).joinpath("grammars", f"{name}.lark")
    return file.read_text(encoding="utf-8")


def _embedded(kind: str, text: str, at: int, where: str, path: str) -> tuple[str, int]:
    """What follows `%json` and its like: an object. The text for llguidance, and where it ends."""
    if kind == "%lark":
        raise _refuse(path, f"{where}: %lark within a grammar cannot be honoured.")
    start = at + len(text[at:]) - len(text[at:].lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"{where}: {kind} needs a JSON object: {error}.") from error
    if kind == "%json":
        value = json_schema.rewrite(value, f"{path}.%json")
    elif kind == "%llguidance" and not (isinstance(value, dict) and value.keys() <= _OPTIONS):
        known = ", ".join(sorted(_OPTIONS))
        raise _refuse(path, f"{where}: an option cannot be honoured.", f"Known: {known}.")
    return f"{kind} {json.dumps(value)}", end


def _check_option(parts: list[str], path: str, line: int) -> None:
    """Options of a rule stand in brackets behind its name: `[name, name=value]`."""
    if len(parts) == 3 and parts[0] in ("[", ",") and parts[1] in _REFUSED_OPTIONS:
        bare = parts[1] == "capture" and parts[2] in ("]", ",")
        if bare or parts[2] == "=":
            raise _refuse(path, f"Line {line}: the option {parts[1]} cannot be honoured.")


def _refuse(path: str, message: str, remedy: str | None = None) -> InvalidRequest:
    return InvalidRequest(message, field=path, remedy=remedy)
