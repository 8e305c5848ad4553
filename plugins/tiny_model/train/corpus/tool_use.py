"""Tool calls: choosing a tool, filling its argument, and telling what it returned."""

from __future__ import annotations

import json
import random
from typing import Any

from . import names
from .base import LANGUAGES, Conversation, Language, assistant, user, vary
from .facts import load_facts
from .small_tasks import NO_TOOL

SIGNATURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "get_weather": (
        "city",
        ("Get the weather in a city", "Returns the current weather of a city."),
    ),
    "calculate": ("expression", ("Calculate an expression", "Evaluates an arithmetic expression.")),
    "get_time": ("city", ("Get the time in a city", "Returns the local time of a city.")),
}
# Wordings by tool and language; the last one of each is held out.
WORDINGS: dict[str, dict[Language, tuple[str, ...]]] = {
    "get_weather": {
        "en": (
            "What is the weather in {x}?",
            "How is the weather in {x}?",
            "What's the weather like in {x}?",
            "Weather in {x}",
            "Tell me the weather in {x}.",
            "Is it raining in {x}?",
            "Is it cold in {x} today?",
            "How warm is it in {x}?",
            "What is the weather like in {x} today?",
            "What is the temperature in {x}?",
            "Do I need an umbrella in {x}?",
            "How is the weather in {x} right now?",
        ),
        "de": (
            "Wie ist das Wetter in {x}?",
            "Was für ein Wetter ist in {x}?",
            "Wetter in {x}",
            "Sag mir das Wetter in {x}.",
            "Regnet es in {x}?",
            "Ist es heute kalt in {x}?",
            "Wie warm ist es in {x}?",
            "Brauche ich in {x} einen Schirm?",
            "Wie ist das Wetter gerade in {x}?",
        ),
    },
    "get_time": {
        "en": (
            "What time is it in {x}?",
            "What is the time in {x}?",
            "Time in {x}",
            "How late is it in {x}?",
            "Tell me the time in {x}.",
            "What is the local time in {x}?",
            "What time is it now in {x}?",
        ),
        "de": (
            "Wie spät ist es in {x}?",
            "Wie viel Uhr ist es in {x}?",
            "Uhrzeit in {x}",
            "Sag mir die Uhrzeit in {x}.",
            "Wie ist die Ortszeit in {x}?",
            "Wie spät ist es jetzt in {x}?",
        ),
    },
    "calculate": {
        "en": (
            "What is {x}?",
            "Calculate {x}.",
            "Compute {x}",
            "How much is {x}?",
            "{x} = ?",
            "Please calculate {x}.",
            "Can you calculate {x}?",
        ),
        "de": (
            "Was ist {x}?",
            "Berechne {x}.",
            "Rechne {x}",
            "Wie viel ist {x}?",
            "{x} = ?",
            "Bitte berechne {x}.",
            "Kannst du {x} berechnen?",
        ),
    },
}
SKIES: tuple[tuple[str, str], ...] = (
    ("sunny", "sonnig"),
    ("cloudy", "bewölkt"),
    ("rainy", "regnerisch"),
    ("windy", "windig"),
    ("foggy", "neblig"),
    ("snowy", "verschneit"),
    ("clear", "klar"),
)
REFUSALS: dict[Language, str] = {
    "en": "I have no tool for that.",
    "de": "Dafür habe ich kein Werkzeug.",
}


def signature(name: str, rng: random.Random | None = None) -> dict[str, Any]:
    """The JSON signature of a tool, as chat APIs send it; ``rng`` varies text and key order."""
    argument, descriptions = SIGNATURES[name]
    description = rng.choice(descriptions) if rng else descriptions[0]
    field: dict[str, Any] = {"type": "string"}
    if rng and rng.random() < 0.3:
        field["description"] = f"The {argument}"
    function: dict[str, Any] = {
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": {argument: field}, "required": [argument]},
    }
    if rng and rng.random() < 0.15:
        del function["description"]
    tool = {"type": "function", "function": function}
    if rng and rng.random() < 0.3:
        # Plain Jinja sorts the keys of what it prints as JSON.
        return dict(json.loads(json.dumps(tool, sort_keys=True)))
    return tool


def _argument(name: str, rng: random.Random) -> str:
    if name != "calculate":
        return names.city(rng)
    numbers = [names.digits(rng, 1, 4) for _ in range(rng.choice((2, 2, 2, 3)))]
    text = numbers[0]
    for number in numbers[1:]:
        text += rng.choice((" + ", " - ", " * ", " / ")) + number
    return text.replace(" ", "") if rng.random() < 0.3 else text


def _result(name: str, argument: str, language: Language, rng: random.Random) -> tuple[str, str]:
    """What the tool returns, and how the assistant says it."""
    english = language == "en"
    if name == "get_weather":
        degrees, sky = rng.randint(-20, 40), rng.choice(SKIES)
        unit = rng.choice(("temperature", "temperature", "degrees", "temp"))
        pairs: list[tuple[str, Any]] = [(unit, degrees)]
        pairs.append((rng.choice(("condition", "conditions", "sky")), sky[0]))
        if rng.random() < 0.4:
            pairs.insert(0, ("city", argument))
        if rng.random() < 0.3:
            pairs.reverse()
        text = json.dumps(dict(pairs), ensure_ascii=False)
        if rng.random() < 0.3:
            text = f"{degrees} degrees, {sky[0]}"
        if english:
            return text, f"It is {degrees} degrees and {sky[0]} in {argument}."
        return text, f"In {argument} sind es {degrees} Grad und es ist {sky[1]}."
    if name == "get_time":
        clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        text = clock if rng.random() < 0.4 else json.dumps({"time": clock})
        return (
            text,
            f"It is {clock} in {argument}." if english else f"In {argument} ist es {clock} Uhr.",
        )
    value = names.digits(rng, 1, 6)
    text = value if rng.random() < 0.5 else json.dumps({"result": int(value)})
    return text, f"The result is {value}." if english else f"Das Ergebnis ist {value}."


def _call(name: str, argument: str) -> dict[str, Any]:
    function = {"name": name, "arguments": {SIGNATURES[name][0]: argument}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def tool_use(rng: random.Random, held: bool = False) -> Conversation:
    """One to three tools on offer, and a question for one of them, or for none of them."""
    language: Language = rng.choice(LANGUAGES)
    offered = rng.sample(sorted(SIGNATURES), rng.randint(1, 3))
    tools = [signature(name, rng) for name in offered]
    dice = 0.0 if held else rng.random()
    messages: list[dict[str, Any]] = []
    if dice > 0.96:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    if 0.72 <= dice < 0.84:
        # Tools are on offer, but the question needs none.
        fact = rng.choice(load_facts())
        messages.append(user(vary(rng.choice(fact.wordings[language]), language, rng)))
        return Conversation([*messages, assistant(fact.answers[language])], tools)
    name = rng.choice(offered)
    argument = _argument(name, rng)
    wordings = WORDINGS[name][language]
    question = (wordings[-1] if held else rng.choice(wordings[:-1])).format(x=argument)
    if not held and name != "calculate" and rng.random() < 0.3:
        question = vary(question, language, rng) if argument[0].isupper() else question
        if argument not in question:
            question = wordings[0].format(x=argument)
    messages.append(user(question))
    if 0.84 <= dice < 0.88 and name != "calculate":
        return Conversation([*messages, assistant(NO_TOOL[language])])
    if 0.88 <= dice < 0.92 and len(offered) < 3:
        missing = rng.choice([n for n in sorted(SIGNATURES) if n not in offered])
        other = rng.choice(WORDINGS[missing][language][:-1]).format(x=_argument(missing, rng))
        return Conversation([user(other), assistant(REFUSALS[language])], tools)
    messages.append(_call(name, argument))
    if not held and rng.random() < 0.5:
        text, answer = _result(name, argument, language, rng)
        messages += [{"role": "tool", "content": text}, assistant(answer)]
    return Conversation(messages, tools)


def tool_answer(rng: random.Random) -> Conversation:
    """For the evaluation: a call, its result, and the answer told from it."""
    while True:
        conversation = tool_use(rng)
        turns = conversation.messages
        if conversation.tools and len(turns) > 2 and turns[-2]["role"] == "tool":
            return conversation


SYSTEM = (
    "You are a helpful assistant.",
    "You are Themis, a small and friendly assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Du bist ein hilfreicher Assistent.",
    "Be concise.",
    "You are a careful assistant that tells the truth.",
    "Antworte kurz und freundlich.",
)
