"""The line of every key: the locator finds exactly what `tomllib` parses, where it was written."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.config.locate import Path, locate

WORDS = st.text("ab-_1", min_size=1, max_size=3) | st.sampled_from(
    ['"', "a.b", "#", "[x]", "ä =", ""]
)
TEXTS = st.text("ab\"'\\\n#[]{}=,\t ", max_size=8)
SCALARS = (
    st.integers(-5, 5)
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


class Writer:
    """Writes a document in one of the many ways that TOML has, and notes where each key went."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.places: dict[Path, int] = {}

    def note(self, path: Path) -> None:
        self.places.setdefault(path, self.text.count("\n") + 1)

    def gap(self) -> None:
        self.text += self.draw(st.sampled_from(["", "\n", "# [a] = '''\n", " \t\r\n", "  "]))

    def key(self, name: str) -> None:
        bare = name and set(name) <= set("ab-_1")
        literal = "'" not in name and "\n" not in name
        forms = [json.dumps(name), *([name] if bare else []), *([f"'{name}'"] if literal else [])]
        self.text += self.draw(st.sampled_from(forms))

    def string(self, value: str) -> None:
        forms = [json.dumps(value)]
        forms.append('"""' + value.replace("\\", "\\\\").replace('"', '\\"') + '"""')
        if value and value[0] != "\n" and value[-1] not in '"\\' and '"""' not in value:
            forms.append('"""' + value.replace("\\", "\\\\") + '""\\""""')
        if "'" not in value and "\n" not in value:
            forms.append(f"'{value}'")
        if "'''" not in value and not value.startswith("\n"):
            forms.append(f"'''{value}'''")
        self.text += self.draw(st.sampled_from(forms))

    def value(self, value: Any, path: Path) -> None:
        if isinstance(value, str):
            self.string(value)
        elif isinstance(value, bool):
            self.text += str(value).lower()
        elif isinstance(value, list):
            self.text += "["
            for i, item in enumerate(value):
                self.gap_in_array()
                self.note((*path, i))
                self.value(item, (*path, i))
                self.gap_in_array()
                self.text += "," if i < len(value) - 1 or self.draw(st.booleans()) else ""
            self.gap_in_array()
            self.text += "]"
        elif isinstance(value, dict):
            self.text += "{ "
            for i, (name, item) in enumerate(value.items()):
                self.text += ", " if i else ""
                self.pair(name, item, path)
            self.text += " }"
        else:
            self.text += value.isoformat(" ") if hasattr(value, "isoformat") else repr(value)

    def gap_in_array(self) -> None:
        self.text += self.draw(st.sampled_from(["", "\n", "# ], '\n", " "]))

    def pair(self, name: str, value: Any, path: Path) -> None:
        self.note((*path, name))
        self.key(name)
        if isinstance(value, dict) and len(value) == 1 and self.draw(st.booleans()):
            self.text += " . "
            ((inner, item),) = value.items()
            self.pair(inner, item, (*path, name))
            return
        self.text += " = "
        self.value(value, (*path, name))

    def table(self, names: list[str], path: Path, data: dict[str, Any]) -> None:
        """The pairs first, then what gets a header of its own."""
        later: list[tuple[str, Any, bool]] = []
        for name, value in data.items():
            if isinstance(value, dict) and self.draw(st.booleans()):
                later.append((name, value, False))
            elif (
                isinstance(value, list)
                and value
                and all(isinstance(item, dict) for item in value)
                and self.draw(st.booleans())
            ):
                later.append((name, value, True))
            else:
                self.gap()
                self.pair(name, value, path)
                self.text += "\n"
        for name, value, array in later:
            for i, item in enumerate(value if array else [value]):
                self.gap()
                self.note((*path, name))
                inner = (*path, name, i) if array else (*path, name)
                self.note(inner)
                self.text += "[[" if array else "["
                for part in names:
                    self.key(part)
                    self.text += "."
                self.key(name)
                self.text += "]]\n" if array else "]\n"
                self.table([*names, name], inner, item)


def paths(value: Any, at: Path = ()) -> set[Path]:
    found = {at} if at else set()
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        inner = paths(item, (*at, name)) if isinstance(item, dict | list) else {(*at, name)}
        found |= inner
    return found


@given(st.data(), st.dictionaries(WORDS, VALUES, max_size=4))
def test_every_key_is_found_on_its_line(data: st.DataObject, document: dict[str, Any]) -> None:
    writer = Writer(data.draw)
    writer.table([], (), document)
    try:
        parsed = tomllib.loads(writer.text)
    except tomllib.TOMLDecodeError:
        raise AssertionError(f"the test wrote no TOML:\n{writer.text}") from None
    found = locate(writer.text)
    assert found.keys() == paths(parsed)
    assert found == writer.places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a = 1 # b = 2", {("a",): 1}),
        (
            "\n\r\n[a.b]\nc.d = [\n1]",
            {
                ("a",): 3,
                ("a", "b"): 3,
                ("a", "b", "c"): 4,
                ("a", "b", "c", "d"): 4,
                ("a", "b", "c", "d", 0): 5,
            },
        ),
        ("a = \"\"\"\nb = 1\n\"\"\"\nc = '''x'''''\nd=1", {("a",): 1, ("c",): 4, ("d",): 5}),
        ('a = """"x"""""\nb = ""\nc = """"""', {("a",): 1, ("b",): 2, ("c",): 3}),
    ],
)
def test_by_hand(text: str, expected: dict[Path, int]) -> None:
    tomllib.loads(text)
    assert locate(text) == expected
