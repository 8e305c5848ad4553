"""`BannedWords`: a validator that refuses prompts and answers in which one of some words stands."""

from __future__ import annotations

from collections.abc import Sequence

from themis_core.errors import RequestRejected
from themis_core.messages import GenerateRequest


class BannedWords:
    """Finds the words anywhere, in any case of ASCII letters, and wherever tokens divide them.

    Of an answer it holds back `hold_back` characters at most, one less than the longest word: so
    much could be the beginning of one, and no part of a banned word is ever sent.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Raises `ValueError` for no words, or an empty one."""
        if not words or not all(words):
            raise ValueError(f"words is {words!r}, but must be some words, none of them empty")
        self.words = tuple(_folded(word) for word in words)
        self.hold_back = max(map(len, self.words)) - 1

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        """The request as it is. Prompts of token ids are not read. Raises `RequestRejected`."""
        texts = [message.content for message in request.messages]
        if isinstance(request.prompt, str):
            texts.append(request.prompt)
        for text in texts:
            if any(word in _folded(str(text)) for word in self.words):
                raise RequestRejected(
                    "The prompt contains a banned word.",
                    field="prompt" if request.prompt is not None else "messages",
                    plugin="banned_words",
                )
        return request

    def check_output(self, request: GenerateRequest) -> BannedWordsCheck:
        """A check with nothing in common with any other."""
        return BannedWordsCheck(self.words)

    async def aclose(self) -> None:
        """There is nothing to close."""


class BannedWordsCheck:
    """Holds back exactly what a banned word could begin with."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._held = ""

    def push(self, text: str) -> str:
        """All but a possible beginning of a word. Raises `RequestRejected`."""
        text = self._held + text
        folded = _folded(text)
        if any(word in folded for word in self._words):
            raise RequestRejected("The answer contains a banned word.", plugin="banned_words")
        keep = max(_overlap(folded, word) for word in self._words)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The beginning did not become a word."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, word: str) -> int:
    """The length of the longest end of `text` that is a beginning of `word`."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)


_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def _folded(text: str) -> str:
    # ASCII only: `str.lower` changes the length of some texts, and places in them would be wrong.
    return text.translate(_LOWER)
