"""`$ref` within one schema: finding targets, and finding loops that no document can satisfy."""

from __future__ import annotations

import urllib.parse
from typing import Any

from themis_core.errors import InvalidRequest

MAX_WRITTEN_OUT = 20_000
_IN_PLACE = ("allOf", "anyOf", "oneOf")


def _refuse(path: str, message: str, remedy: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"{path}: {message}", field=path, remedy=remedy)


class References:
    """Targets that were referred to. Each is written once, under a name of ours.

    `pending` holds (name, schema, path) of those that are still to be written.
    """

    def __init__(self, root: Any, path: str) -> None:
        self._root = root
        self._path = path
        self._names: dict[str, str] = {}
        self._where: dict[str, str] = {}
        self.pending: list[tuple[str, Any, str]] = []

    def name(self, reference: str, where: str) -> str:
        """The new reference for an old one. Raises `InvalidRequest` if it leads out or nowhere."""
        if reference not in self._names:
            target, path = self._find(reference, where)
            name = f"d{len(self._names)}"
            self._names[reference] = name
            self._where[name] = where
            self.pending.append((name, target, path))
        return f"#/$defs/{self._names[reference]}"

    def _find(self, reference: str, where: str) -> tuple[Any, str]:
        if reference != "#" and not reference.startswith("#/"):
            raise _refuse(
                where,
                f"the reference {reference!r} is not honoured.",
                "References begin with #/ and stay within the schema.",
            )
        target, path = self._root, self._path
        for step in reference[2:].split("/") if len(reference) > 1 else []:
            key = urllib.parse.unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise _refuse(where, f"the reference {reference!r} leads nowhere.")
            path = f"{path}.{key}"
        if not isinstance(target, dict | bool):
            raise _refuse(where, f"the reference {reference!r} leads to no schema.")
        return target, path

    def check(self, root: Any, definitions: dict[str, Any], path: str) -> None:
        """Refuse loops that never get deeper, and those that no finite document satisfies."""
        for name in definitions:
            if _reaches(definitions, name):
                where = self._where[name]
                raise _refuse(where, "the reference leads back to itself at the same place.")
        sizes: dict[str, int] = {}
        places = [root, *definitions.values()]
        if max(_written_out(place, definitions, sizes) for place in places) > MAX_WRITTEN_OUT:
            raise _refuse(path, "its references, written out, are too large a schema.")
        finite = dict.fromkeys(definitions, False)
        changed = True
        while changed:
            changed = False
            for name, schema in definitions.items():
                if not finite[name] and _is_finite(schema, finite):
                    finite[name] = changed = True
        if not _is_finite(root, finite):
            raise _refuse(
                path, "no finite document satisfies the schema: its recursion never ends."
            )


def _same_place(schema: Any) -> list[str]:
    """Names of definitions that apply to the same value as the schema does."""
    if not isinstance(schema, dict):
        return []
    names = [schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else []
    return names + [n for k in _IN_PLACE for part in schema.get(k, []) for n in _same_place(part)]


def _reaches(definitions: dict[str, Any], name: str) -> bool:
    seen: set[str] = set()
    todo = _same_place(definitions[name])
    while todo:
        other = todo.pop()
        if other == name:
            return True
        if other not in seen:
            seen.add(other)
            todo += _same_place(definitions[other])
    return False


def _written_out(schema: Any, definitions: dict[str, Any], sizes: dict[str, int]) -> int:
    """How many schemas apply to one and the same value; loops have been refused before."""
    if not isinstance(schema, dict):
        return 1
    total = 1
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        if name not in sizes:
            sizes[name] = _written_out(definitions[name], definitions, sizes)
        total += sizes[name]
    parts = [part for key in _IN_PLACE for part in schema.get(key, [])]
    return total + sum(_written_out(part, definitions, sizes) for part in parts)


def _is_finite(schema: Any, finite: dict[str, bool]) -> bool:
    """True if some finite document satisfies the schema, as far as recursion goes."""
    if not isinstance(schema, dict):
        return True
    if "$ref" in schema and not finite[schema["$ref"].removeprefix("#/$defs/")]:
        return False
    if not all(_is_finite(part, finite) for part in schema.get("allOf", [])):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_is_finite(part, finite) for part in schema[key]):
            return False
    types = schema.get("type", "null")
    types = [types] if isinstance(types, str) else types
    return any(_can_be(kind, schema, finite) for kind in types)


def _can_be(kind: str, schema: dict[str, Any], finite: dict[str, bool]) -> bool:
    if kind == "array":
        first = schema.get("prefixItems", [])
        least = schema.get("minItems", 0)
        rest = [schema.get("items", True)] if least > len(first) else []
        return all(_is_finite(part, finite) for part in [*first[:least], *rest])
    if kind == "object":
        listed = schema.get("properties", {})
        needed = [listed[key] for key in schema.get("required", []) if key in listed]
        return all(_is_finite(part, finite) for part in needed)
    return True
