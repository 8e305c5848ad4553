"""Reads the tables of facts: single facts, and relations that make one fact per row."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from .base import LANGUAGES, Fact

TABLES = Path(__file__).with_name("tables")


@cache
def load_facts() -> tuple[Fact, ...]:
    """All facts of all tables, in the order of file names and of lines."""
    facts: list[Fact] = []
    for path in sorted(TABLES.glob("*.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        facts += [_single(path.stem, entry) for entry in table.get("fact", ())]
        rows: dict[str, Any] = {}
        for relation in table.get("relation", ()):
            relation.setdefault("rows", rows.get(relation.get("rows_of", "")))
            rows[relation["name"]] = relation["rows"]
            facts += _relation(path.stem, relation)
    return tuple(facts)


def _single(category: str, entry: dict[str, Any]) -> Fact:
    """A fact with its own wordings; of four or more the last is held out."""
    wordings, held = {}, {}
    for language in LANGUAGES:
        every = tuple(entry[language])
        kept = len(every) - 1 if len(every) >= 4 else len(every)
        wordings[language], held[language] = every[:kept], every[kept:]
    answers = {language: entry[f"answer_{language}"] for language in LANGUAGES}
    short = {language: entry.get(f"short_{language}", answers[language]) for language in LANGUAGES}
    return Fact(category, wordings, held, answers, short)


def _relation(category: str, relation: dict[str, Any]) -> list[Fact]:
    """One fact per row, the templates filled with the row's columns."""
    facts = []
    for row in relation["rows"]:
        if len(row) != len(relation["columns"]):
            raise ValueError(f"{category}: {row} does not have the columns {relation['columns']}")
        values = dict(zip(relation["columns"], row, strict=True))

        def fill(key: str, values: dict[str, str] = values) -> dict[Any, tuple[str, ...]]:
            return {
                language: tuple(t.format(**values) for t in relation.get(f"{key}{language}", ()))
                for language in LANGUAGES
            }

        facts.append(
            Fact(
                category,
                fill(""),
                fill("held_"),
                {lang: _sentence(relation[f"answer_{lang}"], values) for lang in LANGUAGES},
                {lang: relation[f"short_{lang}"].format(**values) for lang in LANGUAGES},
                fill("follow_"),
                relation["name"],
            )
        )
    return facts


def _sentence(template: str, values: dict[str, str]) -> str:
    """The filled template with a capital first letter ("the USA is …" → "The USA is …")."""
    text = template.format(**values)
    return text[:1].upper() + text[1:]
