"""Telling the special tokens that a template wrote from those written in messages and tools.

Otherwise anybody could end their own turn and begin another speaker's. Templates transform what
they are given (trim, split, JSON), so where a text came from shows only in a second rendering, in
which the texts from outside are disguised: some of their characters are replaced, one for one, by
private-use characters. If that rendering without its disguise is the first one, each replaced
character of it stands for a character from outside at the same place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable

from themis_core.errors import InvalidRequest
from themis_engine.chat.plain import Disguise

Part = tuple[str, bool]
"""Some text of the prompt, and whether special tokens written in it count."""

_PRIVATE = range(0xE000, 0xF8FF)


class Guard:
    """Knows the texts of a model's special tokens."""

    def __init__(self, specials: Iterable[str]) -> None:
        texts = sorted(filter(None, specials), key=len, reverse=True)
        signs = {c for text in texts for c in text if not (c.isalnum() or c.isspace())}
        self._special = _any_of(texts)
        # All signs that special tokens are made of: so a token that a template puts together, from
        # two texts or by cutting something out of one, is found too. Where the template itself
        # looks at such signs, fewer: those with which tokens begin, then those of whole tokens.
        firsts = signs & {text[0] for text in texts}
        self._disguised = (_any_of(sorted(signs)), _any_of(sorted(firsts)), self._special)

    def parts(self, text: str, render: Callable[[Disguise], str]) -> list[Part]:
        """The rendered prompt `text` in parts. `render` renders it again, with disguised texts.

        Raises `InvalidRequest` where special tokens in texts from outside cannot be told from the
        template's own.
        """
        for pattern in self._disguised:
            costume = _Costume(pattern, text)
            try:
                again: str | None = render(costume.put_on)
            except InvalidRequest:  # A template may refuse what it does not recognise.
                again = None
            if not costume.worn:
                return [(text, True)]
            if again is not None:
                bare, places = costume.take_off(again)
                if bare == text:
                    return self._split(text, places)
        raise InvalidRequest(
            "A message or tool contains a special token of the model, and the chat template "
            "changes that text, so that it cannot be kept apart from the template's own tokens.",
            field="messages",
            remedy="Take the special token out of the text.",
        )

    def _split(self, text: str, outside: set[int]) -> list[Part]:
        """Cut at the template's own tokens, so that what is between is tokenised as one piece."""
        parts: list[Part] = []
        begin = end = 0  # Of what counts, and of what has been looked at.
        foreign = False  # Whether a foreign special token stands behind `end`.
        for found in itertools.chain(self._special.finditer(text), [None]):
            span = range(len(text), len(text)) if found is None else range(*found.span())
            if not outside.isdisjoint(span):
                foreign = True
                continue
            if foreign:
                parts += [(text[begin:end], True), (text[end : span.start], False)]
                begin, foreign = span.start, False
            end = span.stop
        parts.append((text[begin:], True))
        return [part for part in parts if part[0]]


class _Costume:
    """Replaces the first character of each match by one that the prompt does not have."""

    def __init__(self, pattern: re.Pattern[str], prompt: str) -> None:
        self._pattern = pattern
        self._free = (
            chr(code)
            for code in _PRIVATE
            if chr(code) not in prompt and _escaped(chr(code)) not in prompt
        )
        self._stand_ins: dict[str, str] = {}
        self.worn = False

    def put_on(self, text: str) -> str:
        return self._pattern.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        self.worn = True
        sign, rest = match[0][0], match[0][1:]
        if sign not in self._stand_ins:
            # Without a free character left, the prompts differ, which is noticed.
            self._stand_ins[sign] = next(self._free, "\ufffd")
        return self._stand_ins[sign] + rest

    def take_off(self, text: str) -> tuple[str, set[int]]:
        """The text as it would be, and where in it the replaced characters are."""
        signs = {stand_in: sign for sign, stand_in in self._stand_ins.items()}
        # JSON may have escaped them.
        signs |= {_escaped(stand_in): sign for stand_in, sign in signs.items()}
        places: set[int] = set()
        pieces: list[str] = []
        length = at = 0
        for match in _any_of(sorted(signs, key=len, reverse=True)).finditer(text):
            before = text[at : match.start()]
            length += len(before)
            places.add(length)
            pieces += [before, signs[match[0]]]
            length += 1
            at = match.end()
        return "".join([*pieces, text[at:]]), places


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")  # (?!) never matches.
