"""The shapes that all parts of the corpus share."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")


@dataclass(frozen=True)
class Conversation:
    """Messages as chat APIs write them, and the tools that the system turn offers."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Fact:
    """One thing to know: several wordings per language, and one answer in each."""

    category: str
    wordings: dict[Language, tuple[str, ...]]
    held_out: dict[Language, tuple[str, ...]]
    answers: dict[Language, str]
    short: dict[Language, str] = field(default_factory=dict)
    follow_up: dict[Language, tuple[str, ...]] = field(default_factory=dict)
    relation: str = ""


def user(text: str) -> dict[str, Any]:
    """A user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """An assistant turn."""
    return {"role": "assistant", "content": text}


def ask(question: str, answer: str) -> Conversation:
    """A conversation of one question and its answer."""
    return Conversation([user(question), assistant(answer)])


OPENERS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Please tell me: ",
        "Hi! ",
        "Hello, ",
        "Can you tell me: ",
        "Quick question: ",
        "Hey, ",
        "Tell me: ",
        "I have a question. ",
        "Please answer: ",
        "Question: ",
        "Good morning! ",
    ),
    "de": (
        "Bitte sag mir: ",
        "Hallo! ",
        "Kannst du mir sagen: ",
        "Kurze Frage: ",
        "Hey, ",
        "Sag mal, ",
        "Ich habe eine Frage. ",
        "Bitte antworte: ",
        "Frage: ",
        "Guten Tag! ",
    ),
}
CLOSERS: dict[Language, tuple[str, ...]] = {
    "en": (" Please.", " Thanks!", " Thank you.", " Please answer.", " I want to know."),
    "de": (" Bitte.", " Danke!", " Vielen Dank.", " Bitte antworte.", " Das will ich wissen."),
}


def vary(question: str, language: Language, rng: random.Random) -> str:
    """The same question as people type it: lower case, no question mark, a greeting before it."""
    dice = rng.random()
    if dice < 0.55:
        return question
    if dice < 0.65:
        return question.lower()
    if dice < 0.74:
        return question.rstrip("?.!")
    if dice < 0.82:
        return question.lower().rstrip("?.!")
    if dice < 0.91:
        return rng.choice(OPENERS[language]) + question
    if dice < 0.96:
        return question + rng.choice(CLOSERS[language])
    return question.rstrip("?.!") + rng.choice((" ?", "??", "!", "?!", ".", "..."))
