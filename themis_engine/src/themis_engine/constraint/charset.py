"""Sets of Unicode characters as sorted, disjoint ranges of code points; surrogates are in none."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Iterable

Charset = tuple[tuple[int, int], ...]
"""Inclusive ranges of code points, rising, neither overlapping nor touching."""

NONE: Charset = ()
ANY: Charset = ((0, 0xD7FF), (0xE000, 0x10FFFF))


def charset(ranges: Iterable[tuple[int, int]]) -> Charset:
    """The union of ranges, in any order; surrogates are left out."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif low <= high:
            merged.append((low, high))
    return intersection(tuple(merged), ANY)


def of(characters: str) -> Charset:
    """The characters of a text."""
    return charset((ord(c), ord(c)) for c in characters)


def union(*sets: Charset) -> Charset:
    """Characters in any of the sets."""
    return charset(r for s in sets for r in s)


def intersection(a: Charset, b: Charset) -> Charset:
    """Characters in both."""
    result = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            result.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(result)


def complement(s: Charset) -> Charset:
    """All other characters."""
    result = []
    start = 0
    for low, high in s:
        result.append((start, low - 1))
        start = high + 1
    result.append((start, 0x10FFFF))
    return charset(r for r in result if r[0] <= r[1])


def contains(s: Charset, character: str) -> bool:
    """True if the character is in the set."""
    code = ord(character)
    low, high = 0, len(s)
    while low < high:
        middle = (low + high) // 2
        if s[middle][1] < code:
            low = middle + 1
        else:
            high = middle
    return low < len(s) and s[low][0] <= code


def matching(expression: str) -> Charset:
    """The characters of which Python's `re` finds runs; the expression ends in `+`."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    return charset(
        (ord(match[0][0]), ord(match[0][-1])) for match in re.finditer(expression, every)
    )


@functools.cache
def category(name: str) -> Charset | None:
    """Characters of a general category of Unicode ("L", "Lu", …); None if there is none such."""
    return _categories().get(name)


@functools.cache
def _categories() -> dict[str, Charset]:
    found: dict[str, list[tuple[int, int]]] = {}
    for code in range(sys.maxunicode + 1):
        name = unicodedata.category(chr(code))
        for key in (name, name[0]):
            ranges = found.setdefault(key, [])
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1] = (ranges[-1][0], code)
            else:
                ranges.append((code, code))
    # Which characters are not yet assigned changes with every version of Unicode.
    return {k: charset(v) for k, v in found.items() if k not in ("C", "Cn", "Cs")}
