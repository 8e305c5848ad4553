"""Fields out of a sentence, as JSON."""

from __future__ import annotations

import json
import random
from typing import Any

from . import names
from .base import LANGUAGES, Conversation, Language, ask

# Sentences by language; the last one of each is held out.
SENTENCES: dict[Language, tuple[str, ...]] = {
    "en": (
        "{name} is {age} years old and lives in {city}.",
        "{name}, {age}, lives in {city} and works as a {job}.",
        "My name is {name}, I am {age} and I come from {city}.",
        "{name} from {city} works as a {job}.",
        "{name} lives in {city}. The email address is {email}.",
        "Contact: {name}, {email}, {city}.",
        "{name} ordered {quantity} {product} for {price} euros.",
        "Please send {quantity} {product} to {name} in {city}.",
        "The {product} costs {price} euros in {city}.",
        "{name} bought {product} for {price} euros on {day}.",
        "On {day} {name} meets us in {city}.",
        "{name} works as a {job} at {company} in {city}.",
        "The company {company} is in {city} and was founded in {year}.",
        "{company} hired {name} in {year}.",
        "{name} is {age} and works at {company}.",
        "This is {name}. {name} is {age} years old, comes from {city} and works as a {job}.",
    ),
    "de": (
        "{name} ist {age} Jahre alt und wohnt in {city}.",
        "{name}, {age}, wohnt in {city} und arbeitet als {job}.",
        "Ich heiße {name}, bin {age} und komme aus {city}.",
        "{name} aus {city} arbeitet als {job}.",
        "{name} wohnt in {city}. Die E-Mail-Adresse ist {email}.",
        "Kontakt: {name}, {email}, {city}.",
        "{name} hat {quantity} {product} für {price} Euro bestellt.",
        "Bitte sende {quantity} {product} an {name} in {city}.",
        "{name} kaufte am {day} {product} für {price} Euro.",
        "Am {day} trifft uns {name} in {city}.",
        "{name} arbeitet als {job} bei {company} in {city}.",
        "Die Firma {company} ist in {city} und wurde {year} gegründet.",
        "{name} ist {age} und arbeitet bei {company}.",
        "Das ist {name}. {name} ist {age} Jahre alt, kommt aus {city} und arbeitet als {job}.",
    ),
}
FRAMES: dict[Language, tuple[str, ...]] = {
    "en": (
        "Extract {f} as JSON: {t}",
        "Extract the fields {f} as JSON: {t}",
        "Extract {f} from this text as JSON.\n\n{t}",
        "Give me {f} as JSON.\nText: {t}",
        "Text: {t}\nExtract {f} as JSON.",
        "Return JSON with {f}: {t}",
        "{t}\n\nReturn {f} as JSON.",
        "Write {f} as JSON: {t}",
    ),
    "de": (
        "Gib {f} als JSON aus: {t}",
        "Extrahiere {f} als JSON: {t}",
        "Extrahiere die Felder {f} als JSON: {t}",
        "Schreibe {f} als JSON.\nText: {t}",
        "Text: {t}\nExtrahiere {f} als JSON.",
        "{t}\n\nGib {f} als JSON zurück.",
        "Extrahiere {f} aus diesem Text als JSON.\n\n{t}",
    ),
}
LABELS_DE = {
    "name": "name",
    "age": "alter",
    "city": "stadt",
    "job": "beruf",
    "email": "email",
    "quantity": "menge",
    "product": "produkt",
    "price": "preis",
    "day": "tag",
    "company": "firma",
    "year": "jahr",
}


def _values(rng: random.Random, language: Language) -> dict[str, Any]:
    english = language == "en"
    person = names.full_name(rng) if rng.random() < 0.6 else names.first_name(rng)
    host = names.invented(rng, 1, 2).lower() if rng.random() < 0.5 else "example"
    mailbox = names.first_name(rng).lower()
    return {
        "name": person,
        "age": rng.randint(5, 99),
        "city": names.city(rng),
        "job": rng.choice(names.JOBS_EN if english else names.JOBS_DE),
        "email": f"{mailbox}@{host}.{rng.choice(('com', 'org', 'de', 'net'))}",
        "quantity": rng.randint(2, 99),
        "product": rng.choice(names.FOODS_EN if english else names.FOODS_DE),
        "price": rng.randint(1, 999),
        "day": rng.choice(names.DAYS_EN if english else names.DAYS_DE),
        "company": names.invented(rng),
        "year": rng.randint(1800, 2025),
    }


def extraction(rng: random.Random, held: bool = False) -> Conversation:
    """A sentence, the wish for some of its fields, and the JSON object that holds them."""
    language: Language = rng.choice(LANGUAGES)
    sentences = SENTENCES[language]
    sentence = sentences[-1] if held else rng.choice(sentences[:-1])
    values = _values(rng, language)
    present = [key for key in values if "{" + key + "}" in sentence]
    wanted = rng.sample(present, rng.randint(1, len(present)))
    if not held and rng.random() < 0.08:
        wanted.append(rng.choice([key for key in values if key not in present]))
    label = {key: key if language == "en" else LABELS_DE[key] for key in values}
    result = {label[key]: values[key] if key in present else None for key in wanted}
    fields = [label[key] for key in wanted]
    joint = " and " if language == "en" else " und "
    listed = ", ".join(fields)
    if len(fields) > 1 and rng.random() < 0.6:
        listed = ", ".join(fields[:-1]) + joint + fields[-1]
    frame = rng.choice(FRAMES[language])
    question = frame.format(f=listed, t=sentence.format(**values))
    return ask(question, json.dumps(result, ensure_ascii=False))
