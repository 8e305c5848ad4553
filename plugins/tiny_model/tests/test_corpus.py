"""The corpus: its tables load, and what is held out is never trained on."""

from __future__ import annotations

import random

from train.corpus import Mixture, held_out, load_facts
from train.corpus.base import LANGUAGES


def test_tables_load_in_both_languages() -> None:
    facts = load_facts()
    assert len(facts) > 500
    for fact in facts:
        for language in LANGUAGES:
            assert fact.wordings[language]
            assert fact.answers[language].strip() == fact.answers[language]
            assert "{" not in fact.answers[language]


def test_held_out_wordings_are_not_among_the_trained() -> None:
    trained = {w for f in load_facts() for ws in f.wordings.values() for w in ws}
    held = {w for f in load_facts() for ws in f.held_out.values() for w in ws}
    assert len(held) > 1000
    assert not held & trained


def test_one_question_has_one_answer() -> None:
    answers: dict[tuple[str, str], str] = {}
    for fact in load_facts():
        for language in LANGUAGES:
            for wording in fact.wordings[language] + fact.held_out[language]:
                known = answers.setdefault((language, wording.lower()), fact.answers[language])
                assert known == fact.answers[language], wording


def test_the_same_seed_gives_the_same_conversations() -> None:
    one, two = ([Mixture()(rng) for rng in [random.Random(3)] * 50] for _ in range(2))
    assert one == two


def test_the_evaluation_is_fixed() -> None:
    assert held_out() == held_out()
