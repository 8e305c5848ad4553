"""Questions about a given context: the answer must be read, since the names are random."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from . import names
from .base import LANGUAGES, Conversation, Fact, Language, assistant, user
from .facts import load_facts

# One statement, the questions for it (the last one held out), and the answer.
Item = tuple[str, tuple[str, ...], str]


def _location(rng: random.Random, language: Language) -> Item:
    who = names.first_name(rng)
    if language == "en":
        thing, place = rng.choice(names.OBJECTS_EN), rng.choice(names.PLACES_EN)
        fact = f"The {thing} of {who} is in the {place}."
        return (
            fact,
            (
                f"Where is the {thing} of {who}?",
                f"Where is {who}'s {thing}?",
                f"In which place is the {thing} of {who}?",
                f"Where can I find the {thing} of {who}?",
            ),
            fact,
        )
    thing, place = rng.choice(names.OBJECTS_DE), rng.choice(names.PLACES_DE)
    fact = f"Der {thing} von {who} ist im {place}."
    return (
        fact,
        (
            f"Wo ist der {thing} von {who}?",
            f"Wo liegt der {thing} von {who}?",
            f"Wo befindet sich der {thing} von {who}?",
            f"Wo finde ich den {thing} von {who}?",
        ),
        fact,
    )


def _home(rng: random.Random, language: Language) -> Item:
    who = names.full_name(rng) if rng.random() < 0.4 else names.first_name(rng)
    town = names.city(rng)
    if language == "en":
        fact = f"{who} lives in {town}."
        return (
            fact,
            (
                f"Where does {who} live?",
                f"In which city does {who} live?",
                f"What is the home of {who}?",
                f"Which city does {who} live in?",
            ),
            fact,
        )
    fact = f"{who} wohnt in {town}."
    return (
        fact,
        (
            f"Wo wohnt {who}?",
            f"In welcher Stadt wohnt {who}?",
            f"Wo lebt {who}?",
            f"Wo ist {who} zu Hause?",
        ),
        fact,
    )


def _taste(rng: random.Random, language: Language) -> Item:
    who = names.first_name(rng)
    if language == "en":
        food = rng.choice(names.FOODS_EN)
        fact = f"{who} likes {food}."
        return (
            fact,
            (
                f"What does {who} like?",
                f"What food does {who} like?",
                f"What is liked by {who}?",
                f"Which food does {who} like?",
            ),
            fact,
        )
    fact = f"{who} mag {rng.choice(names.FOODS_DE)}."
    return fact, (f"Was mag {who}?", f"Was isst {who} gern?", f"Welches Essen mag {who}?"), fact


def _job(rng: random.Random, language: Language) -> Item:
    who = names.first_name(rng)
    if language == "en":
        fact = f"{who} works as a {rng.choice(names.JOBS_EN)}."
        return (
            fact,
            (
                f"What does {who} work as?",
                f"What is the job of {who}?",
                f"What job does {who} have?",
                f"Which job does {who} have?",
            ),
            fact,
        )
    fact = f"{who} arbeitet als {rng.choice(names.JOBS_DE)}."
    return (
        fact,
        (f"Als was arbeitet {who}?", f"Was ist {who} von Beruf?", f"Welchen Beruf hat {who}?"),
        fact,
    )


def _code(rng: random.Random, language: Language) -> Item:
    who = names.first_name(rng) if rng.random() < 0.7 else f"{names.invented(rng)}"
    number = names.digits(rng, 2, 6)
    if language == "en":
        what = rng.choice(("code", "number", "room number", "password", "order number"))
        fact = f"The {what} of {who} is {number}."
        return (
            fact,
            (
                f"What is the {what} of {who}?",
                f"Which {what} does {who} have?",
                f"Tell me the {what} of {who}.",
                f"What {what} does {who} have?",
            ),
            fact,
        )
    what = rng.choice(("Code", "Zugangscode", "Türcode"))
    fact = f"Der {what} von {who} ist {number}."
    return (
        fact,
        (
            f"Was ist der {what} von {who}?",
            f"Welchen {what} hat {who}?",
            f"Nenne den {what} von {who}.",
            f"Wie lautet der {what} von {who}?",
        ),
        fact,
    )


def _event(rng: random.Random, language: Language) -> Item:
    if language == "en":
        event = rng.choice(
            ("meeting", "concert", "party", "exam", "lesson", "market", "visit", "race")
        )
        place = names.city(rng)
        fact = f"The {event} in {place} is on {rng.choice(names.DAYS_EN)}."
        return (
            fact,
            (
                f"When is the {event} in {place}?",
                f"On which day is the {event} in {place}?",
                f"What day is the {event} in {place}?",
            ),
            fact,
        )
    place = names.city(rng)
    event = rng.choice(("Markt", "Kurs", "Besuch", "Termin", "Lauf", "Ausflug"))
    fact = f"Der {event} in {place} ist am {rng.choice(names.DAYS_DE)}."
    return (
        fact,
        (
            f"Wann ist der {event} in {place}?",
            f"An welchem Tag ist der {event} in {place}?",
            f"Welcher Tag ist der {event} in {place}?",
        ),
        fact,
    )


def _price(rng: random.Random, language: Language) -> Item:
    number = names.digits(rng, 1, 4)
    if language == "en":
        thing = rng.choice(names.OBJECTS_EN)
        fact = f"The {thing} costs {number} euros."
        return (
            fact,
            (
                f"How much is the {thing}?",
                f"What does the {thing} cost?",
                f"What is the price of the {thing}?",
                f"How much does the {thing} cost?",
            ),
            fact,
        )
    thing = rng.choice(names.OBJECTS_DE)
    fact = f"Der {thing} kostet {number} Euro."
    return (
        fact,
        (
            f"Was kostet der {thing}?",
            f"Wie teuer ist der {thing}?",
            f"Wie viel kostet der {thing}?",
        ),
        fact,
    )


def _founding(rng: random.Random, language: Language) -> Item:
    firm, year = names.invented(rng), rng.randint(1600, 2025)
    if language == "en":
        verb, noun = rng.choice((("founded", "company"), ("built", "tower"), ("opened", "museum")))
        fact = f"The {noun} {firm} was {verb} in {year}."
        return (
            fact,
            (
                f"When was {firm} {verb}?",
                f"When was the {noun} {firm} {verb}?",
                f"In which year was {firm} {verb}?",
            ),
            fact,
        )
    fact = f"Die Firma {firm} wurde {year} gegründet."
    return (
        fact,
        (
            f"Wann wurde {firm} gegründet?",
            f"Wann wurde die Firma {firm} gegründet?",
            f"In welchem Jahr wurde {firm} gegründet?",
        ),
        fact,
    )


def _capital(rng: random.Random, language: Language) -> Item:
    land, town = names.invented(rng), names.invented(rng)
    if language == "en":
        fact = f"The capital of {land} is {town}."
        return (
            fact,
            (f"What is the capital of {land}?", f"Which city is the capital of {land}?"),
            fact,
        )
    fact = f"Die Hauptstadt von {land} ist {town}."
    return (
        fact,
        (f"Was ist die Hauptstadt von {land}?", f"Wie heißt die Hauptstadt von {land}?"),
        fact,
    )


@cache
def _capitals() -> tuple[Fact, ...]:
    return tuple(fact for fact in load_facts() if fact.relation == "capital")


def _known(rng: random.Random, language: Language) -> Item:
    fact = rng.choice(_capitals())
    return fact.answers[language], fact.wordings[language], fact.answers[language]


KINDS: tuple[Callable[[random.Random, Language], Item], ...] = (
    _location,
    _home,
    _taste,
    _job,
    _code,
    _event,
    _price,
    _founding,
    _capital,
    _known,
)

FRAMES: dict[Language, tuple[str, ...]] = {
    "en": (
        "Context: {c}\nQuestion: {q}",
        "Context: {c} Question: {q}",
        "Context:\n{c}\n\nQuestion: {q}",
        "{c}\n\n{q}",
        "{c} {q}",
        "Read this text: {c}\nQuestion: {q}",
        "Answer from the context.\n\nContext: {c}\n\nQuestion: {q}",
        "Question: {q}\nContext: {c}",
        "Use this context: {c}\n{q}",
        "Text: {c}\nQuestion: {q}",
    ),
    "de": (
        "Kontext: {c}\nFrage: {q}",
        "Kontext: {c} Frage: {q}",
        "Kontext:\n{c}\n\nFrage: {q}",
        "{c}\n\n{q}",
        "{c} {q}",
        "Lies diesen Text: {c}\nFrage: {q}",
        "Antworte aus dem Kontext.\n\nKontext: {c}\n\nFrage: {q}",
        "Frage: {q}\nKontext: {c}",
        "Benutze diesen Kontext: {c}\n{q}",
        "Text: {c}\nFrage: {q}",
    ),
}
NOT_SAID: dict[Language, str] = {
    "en": "The context does not say that.",
    "de": "Das steht nicht im Kontext.",
}


def context_qa(rng: random.Random, held: bool = False) -> Conversation:
    """A context of one to six statements and a question on one of them (or on none)."""
    language: Language = rng.choice(LANGUAGES)
    kinds = [rng.choice(KINDS) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.3:
        # The same kind several times: only the name tells the statements apart.
        kinds = [kinds[0]] * min(len(kinds), 4)
    items = [kind(rng, language) for kind in kinds]
    items = list({item[1][0]: item for item in items}.values())
    chosen = rng.choice(items)
    answer = chosen[2]
    if rng.random() < 0.1:
        other = rng.choice(KINDS[:-1])(rng, language)
        if other[1][0] not in {item[1][0] for item in items}:
            chosen, answer = other, NOT_SAID[language]
    wordings = chosen[1]
    question = wordings[-1] if held else rng.choice(wordings[:-1])
    text = " ".join(item[0] for item in items)
    frames = FRAMES[language]
    frame = rng.choice(frames[:-1]) if not held else rng.choice(frames[:3])
    if answer == NOT_SAID[language] and "ont" not in frame:
        frame = frames[0]
    messages = []
    if not held and rng.random() < 0.06:
        label = "Context: " if language == "en" else "Kontext: "
        messages = [{"role": "system", "content": label + text}, user(question)]
    else:
        messages = [user(frame.format(c=text, q=question))]
    messages.append(assistant(answer))
    if not held and len(items) > 1 and rng.random() < 0.2:
        again = rng.choice(items)
        messages += [user(rng.choice(again[1][:-1])), assistant(again[2])]
    return Conversation(messages)
