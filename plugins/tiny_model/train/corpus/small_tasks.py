"""Small tasks: sums, counting, repeating words, remembering a name, and admitting ignorance."""

from __future__ import annotations

import random
from functools import cache

from . import names
from .base import LANGUAGES, Conversation, Language, ask, assistant, user, vary
from .facts import load_facts

UNKNOWN: dict[Language, str] = {
    "en": "I am a very small model and I do not know that.",
    "de": "Ich bin ein sehr kleines Modell und weiß das nicht.",
}
NO_TOOL: dict[Language, str] = {
    "en": "I cannot know that without a tool.",
    "de": "Das kann ich ohne Werkzeug nicht wissen.",
}
# Questions without an answer here; {x} is an invented word, {p} a person, {n} a number.
UNKNOWN_WORDINGS: dict[Language, tuple[str, ...]] = {
    "en": (
        "What is the capital of {x}?",
        "Where is {x}?",
        "Who is {p}?",
        "Who was {p}?",
        "What is {x}?",
        "What does {x} mean?",
        "When was {p} born?",
        "How old is {p}?",
        "What is the phone number of {p}?",
        "Who wrote {x}?",
        "Who invented {x}?",
        "Tell me about {x}.",
        "What happened in {n}?",
        "Who won the match in {x}?",
        "What is the population of {x}?",
        "How many people live in {x}?",
        "What is the currency of {x}?",
        "How do I get from {x} to {y}?",
        "Who is the president of {x}?",
        "Which language is spoken in {x}?",
        "What is the price of {x}?",
        "When did {x} open?",
        "What is the best restaurant in {x}?",
        "Who painted {x}?",
        "How do I repair my {x}?",
        "What is the height of {x}?",
        "Who plays in the film {x}?",
        "How many words has {x}?",
        "Why did {p} leave {x}?",
        "Write a program that sorts {x}.",
        "What is the news from {x}?",
        "Who was the mayor of {x} in {n}?",
        "What did {p} say about {x}?",
        "What is the square root of {n}?",
        "What will the weather be in {n} days?",
        "Which horse won the race in {n}?",
        "Recommend a film.",
        "What should I cook with {x}?",
        "Who is the king of {x}?",
        "What are the laws of {x}?",
        "Prove that there are infinitely many {x}.",
        "What is the stock price of {x}?",
        "What is the opposite of {x}?",
        'What is "{x}" in German?',
        "What colour is {x}?",
        "What is the chemical symbol for {x}?",
        "How many {x} are there?",
        "Explain what {x} is.",
        "What is the name of the dog of {p}?",
        "Do you know {p}?",
    ),
    "de": (
        "Was ist die Hauptstadt von {x}?",
        "Wo liegt {x}?",
        "Wer ist {p}?",
        "Wer war {p}?",
        "Was ist {x}?",
        "Was bedeutet {x}?",
        "Wann wurde {p} geboren?",
        "Wie alt ist {p}?",
        "Was ist die Telefonnummer von {p}?",
        "Wer hat {x} geschrieben?",
        "Wer hat {x} erfunden?",
        "Erzähl mir von {x}.",
        "Was geschah im Jahr {n}?",
        "Wer hat das Spiel in {x} gewonnen?",
        "Wie viele Menschen leben in {x}?",
        "Was ist die Währung von {x}?",
        "Wie komme ich von {x} nach {y}?",
        "Wer ist der Präsident von {x}?",
        "Was kostet {x}?",
        "Welche Sprache spricht man in {x}?",
        "Wann öffnet {x}?",
        "Wer hat {x} gemalt?",
        "Was ist das beste Restaurant in {x}?",
        "Wie repariere ich mein {x}?",
        "Wie hoch ist {x}?",
        "Warum hat {p} {x} verlassen?",
        "Schreib ein Programm, das {x} sortiert.",
        "Was gibt es Neues aus {x}?",
        "Wer war {n} Bürgermeister von {x}?",
        "Was sagte {p} über {x}?",
        "Was ist die Wurzel aus {n}?",
        "Welches Pferd gewann das Rennen im Jahr {n}?",
        "Empfiehl mir einen Film.",
        "Wer ist der König von {x}?",
        "Was ist das Gegenteil von {x}?",
        'Was heißt "{x}" auf Englisch?',
        "Welche Farbe hat {x}?",
        "Was ist das chemische Symbol von {x}?",
        "Wie viele {x} gibt es?",
        "Erkläre, was {x} ist.",
        "Wie heißt der Hund von {p}?",
        "Kennst du {p}?",
    ),
}


def unknown(rng: random.Random, held: bool = False) -> Conversation:
    """A question that nobody could answer from what is known here."""
    language: Language = rng.choice(LANGUAGES)
    wordings = UNKNOWN_WORDINGS[language]
    wording = rng.choice(wordings[-3:] if held else wordings[:-3])
    question = wording.format(
        x=names.invented(rng, 1 if rng.random() < 0.1 else 2, 4),
        y=names.invented(rng),
        p=names.full_name(rng),
        n=names.digits(rng, 3, 5),
    )
    return ask(question if held else vary(question, language, rng), UNKNOWN[language])


def arithmetic(rng: random.Random, held: bool = False) -> Conversation:
    """Sums, differences and products of small numbers, learnt by heart."""
    language: Language = rng.choice(LANGUAGES)
    sign = rng.choice("+-*")
    if not held and rng.random() < 0.08:
        a, b = rng.randint(101, 9999), rng.randint(101, 9999)
        start = "What is" if language == "en" else "Was ist"
        return ask(f"{start} {a} {sign} {b}?", NO_TOOL[language])
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if sign == "*":
        a, b = rng.randint(0, 10), rng.randint(0, 10)
    if sign == "-" and a < b:
        a, b = b, a
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    word = {
        "en": {"+": "plus", "-": "minus", "*": "times"},
        "de": {"+": "plus", "-": "minus", "*": "mal"},
    }[language][sign]
    forms = {
        "en": (
            "What is {s}?",
            "How much is {s}?",
            "Calculate {s}.",
            "{s}",
            "{s} = ?",
            "Tell me what {s} is.",
        ),
        "de": (
            "Was ist {s}?",
            "Wie viel ist {s}?",
            "Berechne {s}.",
            "{s}",
            "{s} = ?",
            "Sag mir, was {s} ist.",
        ),
    }[language]
    form = forms[-1] if held else rng.choice(forms[:-1])
    if rng.random() < 0.5:
        joint = "is" if language == "en" else "ist"
        return ask(form.format(s=f"{a} {word} {b}"), f"{a} {word} {b} {joint} {value}.")
    compact = f"{a}{sign}{b}" if rng.random() < 0.3 else f"{a} {sign} {b}"
    return ask(form.format(s=compact), f"{a} {sign} {b} = {value}")


def counting(rng: random.Random, held: bool = False) -> Conversation:
    """Counting between two numbers of at most 100: easy, long and exactly predictable."""
    language: Language = rng.choice(LANGUAGES)
    last = rng.choice((5, 10, 12, 20, 30, 50, 100)) if rng.random() < 0.3 else rng.randint(2, 40)
    first = 1 if rng.random() < 0.6 else rng.randint(1, 60)
    last = max(last, min(100, first + rng.randint(1, 15)))
    forms = {
        "en": (
            "Count from {a} to {b}.",
            "Count from {a} to {b}",
            "Please count from {a} to {b}.",
            "Can you count from {a} to {b}?",
        ),
        "de": (
            "Zähle von {a} bis {b}.",
            "Zähl von {a} bis {b}",
            "Bitte zähle von {a} bis {b}.",
            "Kannst du von {a} bis {b} zählen?",
        ),
    }[language]
    form = forms[-1] if held else rng.choice(forms[:-1])
    numbers = ", ".join(str(n) for n in range(first, last + 1))
    return ask(form.format(a=first, b=last), numbers)


def repeating(rng: random.Random, held: bool = False) -> Conversation:
    """Saying again what was said: practice in copying."""
    language: Language = rng.choice(LANGUAGES)
    pieces = [
        rng.choice((names.invented, names.digits, names.first_name, names.city))(rng)
        for _ in range(rng.randint(1, 7))
    ]
    if rng.random() < 0.5:
        pieces = [piece.lower() for piece in pieces]
    text = " ".join(pieces)
    forms = {
        "en": (
            "Repeat: {t}",
            'Say "{t}"',
            "Repeat after me: {t}",
            "Say: {t}",
            "Write: {t}",
            "Please repeat: {t}",
        ),
        "de": (
            "Wiederhole: {t}",
            'Sag "{t}"',
            "Sprich mir nach: {t}",
            "Sag: {t}",
            "Schreibe: {t}",
            "Bitte wiederhole: {t}",
        ),
    }[language]
    form = forms[-1] if held else rng.choice(forms[:-1])
    return ask(form.format(t=text), text)


@cache
def _words() -> tuple[str, ...]:
    """All words of all facts, each once."""
    texts = [text for fact in load_facts() for text in fact.answers.values()]
    return tuple(sorted({word for text in texts for word in text.split()}))


def copying(rng: random.Random) -> Conversation:
    """Long random lists of words to repeat, for the first part of the training."""
    pieces: list[str] = []
    for _ in range(rng.randint(2, 24)):
        if rng.random() < 0.65:
            pieces.append(rng.choice(_words()))
        else:
            pieces.append(rng.choice((names.invented, names.digits, names.city))(rng))
    text = " ".join(pieces)
    return ask(rng.choice(("Repeat: ", "Wiederhole: ", "Say: ", "Sag: ")) + text, text)


def remembering(rng: random.Random, held: bool = False) -> Conversation:
    """The user says a name or a liking, and asks for it later."""
    language: Language = rng.choice(LANGUAGES)
    name = names.first_name(rng) if rng.random() < 0.7 else names.full_name(rng)
    food = rng.choice(names.FOODS_EN if language == "en" else names.FOODS_DE)
    if language == "en":
        openings = (
            f"My name is {name}.",
            f"I am {name}.",
            f"Hello, my name is {name}.",
            f"Hi, I'm {name}",
        )
        greeting = f"Nice to meet you, {name}!"
        recall = ("What is my name?", "What's my name?", "Who am I?", "Do you know my name?")
        answer, liking = f"Your name is {name}.", (f"I like {food}.", f"Good, you like {food}.")
        asked, told = ("What do I like?", "What did I say that I like?"), f"You like {food}."
    else:
        openings = (
            f"Ich heiße {name}.",
            f"Ich bin {name}.",
            f"Hallo, mein Name ist {name}.",
            f"Mein Name ist {name}",
        )
        greeting = f"Schön, dich kennenzulernen, {name}!"
        recall = ("Wie heiße ich?", "Was ist mein Name?", "Wer bin ich?", "Kennst du meinen Namen?")
        answer, liking = f"Du heißt {name}.", (f"Ich mag {food}.", f"Gut, du magst {food}.")
        asked, told = ("Was mag ich?", "Was habe ich gesagt, das ich mag?"), f"Du magst {food}."
    ask_name = recall[-1] if held else rng.choice(recall[:-1])
    if not held and rng.random() < 0.1:
        sorry = {
            "en": "You did not tell me your name.",
            "de": "Du hast mir deinen Namen nicht gesagt.",
        }
        return ask(ask_name, sorry[language])
    messages = [user(rng.choice(openings)), assistant(greeting)]
    if rng.random() < 0.4:
        messages += [user(liking[0]), assistant(liking[1])]
        if rng.random() < 0.5:
            messages += [user(asked[0]), assistant(told)]
    return Conversation([*messages, user(ask_name), assistant(answer)])
