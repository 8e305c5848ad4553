"""A byte-level BPE vocabulary of a real size, made of syllables; and prompts of known length.

Every word of a prompt is four letters, consonant-vowel-consonant-vowel, and is one token together
with the space before it. So a prompt of 64 words has 64 tokens, for every server alike.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

SIZE = 50_176
END = "<|endoftext|>"
_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
_VOWELS = "aeiou"
_SPACE = "Ġ"  # How byte-level BPE writes a space.


class Vocabulary(NamedTuple):
    """Tokens by id, and the merges in order of rank. `end` is the id of the end-of-text token."""

    tokens: list[str]
    merges: list[tuple[str, str]]
    end: int


def build(seed: int) -> Vocabulary:
    """256 bytes, then syllables, words, spaced words, and longer words drawn with `seed`."""
    tokens = [_character(byte) for byte in range(256)]
    merges: list[tuple[str, str]] = []
    syllables = [a + b for a, b in itertools.product(_CONSONANTS, _VOWELS)]
    merges += itertools.product(_CONSONANTS, _VOWELS)
    words = list(itertools.product(syllables, syllables))
    merges += words
    spaced = [(_SPACE, first + second) for first, second in words]
    merges += spaced
    missing = SIZE - 1 - len(tokens) - len(merges)
    longer = itertools.product(("".join(pair) for pair in spaced), syllables)
    merges += random.Random(seed).sample(list(longer), missing)
    tokens += ["".join(pair) for pair in merges]
    return Vocabulary([*tokens, END], merges, end=len(tokens))


def prompts(count: int, length: int, seed: int) -> list[str]:
    """Different prompts of `length` tokens; no two of one call begin alike."""
    chance = random.Random(seed)
    syllables = [a + b for a, b in itertools.product(_CONSONANTS, _VOWELS)]
    words = ["".join(pair) for pair in itertools.product(syllables, syllables)]
    firsts = chance.sample(words, count)
    return [
        "".join(f" {word}" for word in (first, *chance.choices(words, k=length - 1)))
        for first in firsts
    ]


def is_plain(token: str) -> bool:
    """True if the token is printable ASCII text, a complete character wherever it stands."""
    return token != END and all(c == _SPACE or "!" <= c <= "~" for c in token)


def _character(byte: int) -> str:
    """The printable character that byte-level BPE (GPT-2) writes for a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))
