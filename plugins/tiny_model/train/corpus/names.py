"""Names of people, places and things: half from lists, half made up, so that copying is learnt."""

from __future__ import annotations

import random

FIRST = (
    "Anna Ben Clara David Emma Felix Greta Hannah Ian Julia Karl Lena Max Nora Oskar Paula Quentin "
    "Rosa Samuel Tina Ulrich Vera Walter Xenia Yusuf Zoe Maria Peter Sofia Thomas Laura Jonas Alice "
    "Bob Carol Dan Eva Frank Grace Henry Ivy Jack Kate Leo Mia Noah Olivia Paul Ruth Sam Tom Ursula "
    "Victor Wendy Ahmed Fatima Chen Mei Kenji Yuki Ravi Priya Ivan Olga Marta Jürgen Käthe Björn"
).split()
LAST = (
    "Weber Schmidt Müller Fischer Meyer Wagner Becker Hoffmann Schulz Koch Bauer Richter Klein Wolf "
    "Neumann Braun Krüger Hartmann Lange Krause Smith Jones Brown Taylor Wilson Evans Walker White "
    "Green Hall Young King Wright Scott Baker Adams Nelson Carter Mitchell Rossi Silva Garcia Novak "
    "Jansen Larsen Kim Tanaka Singh Khan Okafor Dubois Moreau"
).split()
CITIES = (
    "Paris Berlin Rome Madrid Vienna London Hamburg Munich Cologne Leipzig Dresden Zurich Bremen Oslo "
    "Lyon Milan Porto Dublin Boston Chicago Seattle Toronto Tokyo Osaka Lima Cairo Nairobi Sydney "
    "Köln München Wien Zürich Rom Prag Warschau Kiel Bonn Ulm Mainz Freiburg Graz Basel Genf"
).split()
OBJECTS_EN = (
    "key book phone hat bag lamp cup ring map coat letter camera umbrella watch ball wallet bottle "
    "guitar ticket notebook scarf pen knife basket bicycle"
).split()
OBJECTS_DE = (
    "Schlüssel Ball Hut Ring Mantel Brief Schirm Stift Korb Teller Koffer Stein Schuh Apfel Becher "
    "Hammer Löffel Ordner Pullover Rucksack"
).split()
PLACES_EN = (
    "kitchen garden drawer cellar office car box cupboard attic library hall garage shed bathroom "
    "basket bedroom"
).split()
PLACES_DE = (
    "Garten Keller Schrank Auto Büro Flur Regal Koffer Zimmer Schuppen Wald Hof Laden Turm Zelt".split()
)
FOODS_EN = "apples bread cheese soup rice fish pizza grapes honey nuts pasta plums carrots cake".split()
FOODS_DE = "Äpfel Brot Käse Suppe Reis Fisch Pizza Trauben Honig Nüsse Nudeln Pflaumen Kuchen".split()
JOBS_EN = "teacher baker nurse pilot farmer painter lawyer driver cook tailor singer builder".split()
JOBS_DE = "Lehrer Bäcker Pfleger Pilot Bauer Maler Anwalt Fahrer Koch Schneider Sänger Maurer".split()
DAYS_EN = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
DAYS_DE = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split()

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z br cr dr fl gr kl kr pl pr sch sh st th tr ch bl sp qu"
).split()
_VOWELS = "a e i o u a e i o u ai au ea ie oo ei ö ü ä y".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "t", "k", "nd", "rt", "x", "ck", "ng"]


def invented(rng: random.Random, shortest: int = 2, longest: int = 3) -> str:
    """A made-up word of some syllables with a capital letter."""
    count = rng.randint(shortest, longest)
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)]
    return "".join(parts).capitalize()


def first_name(rng: random.Random) -> str:
    """A given name."""
    return rng.choice(FIRST) if rng.random() < 0.5 else invented(rng)


def full_name(rng: random.Random) -> str:
    """A given name and a family name."""
    last = rng.choice(LAST) if rng.random() < 0.5 else invented(rng)
    return f"{first_name(rng)} {last}"


def city(rng: random.Random) -> str:
    """A town, sometimes of two words."""
    dice = rng.random()
    if dice < 0.45:
        return rng.choice(CITIES)
    if dice < 0.9:
        return invented(rng)
    return rng.choice(("New", "Bad", "San", "Port", "Saint")) + " " + invented(rng)


def digits(rng: random.Random, shortest: int = 2, longest: int = 5) -> str:
    """A number as text, without a leading zero."""
    length = rng.randint(shortest, longest)
    return str(rng.randint(10 ** (length - 1), 10**length - 1))
