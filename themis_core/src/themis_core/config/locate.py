"""On which line of a TOML text each key stands. `tomllib` reads the values, but drops the lines."""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}(?!")', re.S),
    re.compile(r"'''.*?'{3,5}(?!')", re.S),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


def locate(text: str) -> dict[Path, int]:
    """The first line (from 1) of every table, key and array item of `text`, which must be valid.

    The items of arrays, and the tables of `[[arrays]]`, are numbered from 0.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted_to = 0
        self._found: dict[Path, int] = {}
        self._sizes: dict[Path, int] = {}  # Of arrays of tables.

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self._skip(_GAP)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._assignment(table)
            self._skip(_GAP)
        return self._found

    def _header(self) -> Path:
        opening = 2 if self._text.startswith("[[", self._at) else 1
        line = self._current_line()
        self._at += opening
        names = self._key()
        self._at += opening
        path: Path = ()
        for i, name in enumerate(names):
            path = (*path, name)
            self._found.setdefault(path, line)
            if opening == 2 and i == len(names) - 1:
                self._sizes[path] = self._sizes.get(path, 0) + 1
            if path in self._sizes:
                path = (*path, self._sizes[path] - 1)
                self._found.setdefault(path, line)
        return path

    def _assignment(self, table: Path) -> None:
        line = self._current_line()
        path = table
        for name in self._key():
            path = (*path, name)
            self._found.setdefault(path, line)
        self._at += 1  # The equals sign.
        self._value(path)

    def _key(self) -> list[str]:
        """A key, dotted or not, with the space around it."""
        names = []
        while True:
            self._skip(_SPACE)
            if self._text[self._at] in "\"'":
                names.append(_unquoted(self._take_string()))
            else:
                names.append(self._take(_BARE_KEY))
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        match self._text[self._at]:
            case '"' | "'":
                self._take_string()
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case _:
                self._take(_SCALAR)

    def _array(self, path: Path) -> None:
        index = 0
        while not self._closed("]"):
            item = (*path, index)
            self._found[item] = self._current_line()
            self._value(item)
            index += 1

    def _inline_table(self, path: Path) -> None:
        while not self._closed("}"):
            self._assignment(path)

    def _closed(self, end: str) -> bool:
        """Step over the opening bracket or a comma; True if the closing bracket is next."""
        self._skip(_GAP)
        if self._text[self._at] in "[{,":
            # An opening bracket of an item is never met here: `_value` has taken it.
            self._at += 1
            self._skip(_GAP)
        if self._text[self._at] != end:
            return False
        self._at += 1
        return True

    def _take_string(self) -> str:
        for pattern in _STRINGS:
            if found := pattern.match(self._text, self._at):
                self._at = found.end()
                return found[0]
        raise AssertionError("the text is no valid TOML")

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found is not None, "the text is no valid TOML"
        self._at = found.end()
        return found[0]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._take(pattern)

    def _current_line(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._at)
        self._counted_to = self._at
        return self._line


def _unquoted(text: str) -> str:
    value: str = tomllib.loads(f"key = {text}")["key"]
    return value
