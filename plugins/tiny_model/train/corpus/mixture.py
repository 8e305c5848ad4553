"""Mixes facts and generators into the stream of conversations that the models are trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from .base import LANGUAGES, Conversation, Fact, Language, assistant, user, vary
from .context_qa import context_qa
from .extraction import extraction
from .facts import load_facts
from .small_tasks import UNKNOWN, arithmetic, counting, remembering, repeating, unknown
from .tool_use import SYSTEM, tool_use

Sampler = Callable[[random.Random], Conversation]

# How often a fact of each table is drawn, relative to the others.
TABLE_SHARE = {
    "countries": 4.0,
    "themis": 2.2,
    "small_talk": 1.3,
    "words": 2.0,
    "science": 1.6,
    "world": 1.6,
}
SHARES: tuple[tuple[str, float], ...] = (
    ("fact", 30.0),
    ("dialogue", 9.0),
    ("long_dialogue", 0.4),
    ("context_qa", 18.0),
    ("extraction", 15.0),
    ("tool_use", 8.5),
    ("unknown", 4.0),
    ("arithmetic", 4.0),
    ("counting", 0.8),
    ("repeating", 5.0),
    ("remembering", 3.0),
)
# The last phase: more facts and sums, and more questions in lower case.
POLISH_SHARES: tuple[tuple[str, float], ...] = (
    ("fact", 44.0),
    ("dialogue", 8.0),
    ("long_dialogue", 0.2),
    ("context_qa", 15.0),
    ("extraction", 12.0),
    ("tool_use", 6.0),
    ("unknown", 5.0),
    ("arithmetic", 9.0),
    ("counting", 0.4),
    ("repeating", 3.0),
    ("remembering", 2.0),
)
POLISH_LOWER_CASE = 0.3
IN_OTHER_LANGUAGE: dict[Language, tuple[str, ...]] = {
    "en": ("Say that in German.", "And in German?", "In German, please."),
    "de": ("Sag das auf Englisch.", "Und auf Englisch?", "Auf Englisch, bitte."),
}


class Facts:
    """Draws facts by the share of their table, and puts them into conversations."""

    def __init__(self) -> None:
        self.by_table: dict[str, list[Fact]] = {}
        for fact in load_facts():
            self.by_table.setdefault(fact.category, []).append(fact)
        self.tables = sorted(self.by_table)
        self.shares = [TABLE_SHARE[table] for table in self.tables]

    def draw(self, rng: random.Random) -> Fact:
        """One fact."""
        table = rng.choices(self.tables, self.shares)[0]
        return rng.choice(self.by_table[table])

    def single(self, rng: random.Random) -> Conversation:
        """One question and its answer, now and then under a system message."""
        language: Language = rng.choice(LANGUAGES)
        fact = self.draw(rng)
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.12:
            messages.append({"role": "system", "content": rng.choice(SYSTEM)})
        question = vary(rng.choice(fact.wordings[language]), language, rng)
        return Conversation([*messages, user(question), assistant(fact.answers[language])])

    def dialogue(self, rng: random.Random, turns: int) -> Conversation:
        """Several turns; some follow from the one before ("And of Spain?")."""
        language: Language = rng.choice(LANGUAGES)
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.1:
            messages.append({"role": "system", "content": rng.choice(SYSTEM)})
        fact = self.draw(rng)
        question = vary(rng.choice(fact.wordings[language]), language, rng)
        for _ in range(turns):
            messages += [user(question), assistant(fact.answers[language])]
            dice = rng.random()
            if dice < 0.4 and fact.follow_up.get(language):
                fact = rng.choice(
                    [f for f in self.by_table[fact.category] if f.relation == fact.relation]
                )
                question = rng.choice(fact.follow_up[language])
                continue
            if dice < 0.5 and fact.relation != "translation":
                question = rng.choice(IN_OTHER_LANGUAGE[language])
                language = "de" if language == "en" else "en"
                continue
            if dice > 0.9:
                language = "de" if language == "en" else "en"
            fact = self.draw(rng)
            question = vary(rng.choice(fact.wordings[language]), language, rng)
        return Conversation(messages)


class Mixture:
    """Draws conversations; the same generator state gives the same conversation."""

    def __init__(self, polish: bool = False) -> None:
        self.polish = polish
        shares = POLISH_SHARES if polish else SHARES
        facts = Facts()
        self.samplers: dict[str, Sampler] = {
            "fact": facts.single,
            "dialogue": lambda rng: facts.dialogue(rng, rng.choice((2, 2, 3, 4))),
            "long_dialogue": lambda rng: facts.dialogue(rng, rng.randint(12, 28)),
            "context_qa": context_qa,
            "extraction": extraction,
            "tool_use": tool_use,
            "unknown": unknown,
            "arithmetic": arithmetic,
            "counting": counting,
            "repeating": repeating,
            "remembering": remembering,
        }
        self.names = [name for name, _ in shares]
        self.weights = [weight for _, weight in shares]

    def __call__(self, rng: random.Random) -> Conversation:
        kind = rng.choices(self.names, self.weights)[0]
        conversation = self.samplers[kind](rng)
        if self.polish and kind == "fact" and rng.random() < POLISH_LOWER_CASE:
            asked = conversation.messages[-2]
            asked["content"] = asked["content"].lower()
        return conversation


def adapter_mixture(name: str) -> Sampler:
    """What an adapter is trained on: ``german`` answers in German, ``json`` answers as JSON."""
    facts = Facts()

    def sample(rng: random.Random) -> Conversation:
        language: Language = rng.choice(LANGUAGES)
        if name == "german" and rng.random() < 0.7:
            language = "en"
        if rng.random() < 0.1:
            question = unknown(rng).messages[0]["content"]
            language = "de" if name == "german" else language
            if name == "json":
                # A made-up question has no short answer; JSON says so with null.
                return Conversation([user(question), assistant('{"answer": null}')])
            return Conversation([user(question), assistant(UNKNOWN["de"])])
        messages: list[dict[str, Any]] = []
        for _ in range(rng.choice((1, 1, 1, 2))):
            fact = facts.draw(rng)
            question = vary(rng.choice(fact.wordings[language]), language, rng)
            answer = fact.answers["de"]
            if name == "json":
                answer = json.dumps({"answer": fact.short[language]}, ensure_ascii=False)
            messages += [user(question), assistant(answer)]
        return Conversation(messages)

    return sample


def held_out() -> dict[str, list[Conversation]]:
    """The evaluation: wordings that no model is trained on, by category.

    Single facts and relations give all their held-out wordings; each generator gives 100
    conversations from its own seed, made of held-out wordings where it has some.
    """
    cases: dict[str, list[Conversation]] = {}
    for fact in load_facts():
        for language in LANGUAGES:
            table = fact.relation if fact.relation in ("capital", "continent") else fact.category
            for wording in fact.held_out[language]:
                turn = [user(wording), assistant(fact.answers[language])]
                cases.setdefault(f"{table} {language}", []).append(Conversation(turn))
    generators = {
        "context_qa": context_qa,
        "extraction": extraction,
        "tool_use": tool_use,
        "unknown": unknown,
        "arithmetic": arithmetic,
        "counting": counting,
        "repeating": repeating,
        "remembering": remembering,
    }
    for name, generator in generators.items():
        rng = random.Random(f"held out {name}")
        count = 20 if name == "counting" else 100
        cases[name] = [generator(rng, held=True) for _ in range(count)]
    return cases
