"""The held-out evaluation: greedy answers to wordings that were never trained on."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import Tokenizer

from .chat import render, tool_call
from .corpus import held_out
from .generate import answer
from .model import Llama


def held_prompts(count: int) -> list[str]:
    """``count`` rendered prompts spread over all categories, for comparing runtimes."""
    rng = random.Random("held prompts")
    cases = [case for category in held_out().values() for case in category]
    chosen = rng.sample(cases, count)
    return [render(case.messages[:-1], case.tools, prompt=True) for case in chosen]


def expected(message: dict[str, Any]) -> str:
    """The text that an assistant message stands for."""
    calls = [c["function"] for c in message.get("tool_calls") or ()]
    return "\n".join(tool_call(c["name"], c["arguments"]) for c in calls) or message["content"]


def evaluate(model: Llama, tokenizer: Tokenizer, limit: int | None = None) -> dict[str, Any]:
    """Exact matches by category; ``limit`` takes only so many cases of each (evenly spread)."""
    report: dict[str, Any] = {}
    right = total = 0
    for category, cases in held_out().items():
        step = max(1, len(cases) // limit) if limit else 1
        cases = cases[::step]
        prompts = [render(case.messages[:-1], case.tools, prompt=True) for case in cases]
        given = answer(model, tokenizer, prompts, limit=200 if category == "counting" else 110)
        wanted = [expected(case.messages[-1]) for case in cases]
        misses = [
            {"asked": case.messages[-2]["content"], "wanted": w, "given": g}
            for case, w, g in zip(cases, wanted, given, strict=True)
            if w != g
        ]
        entry = {"cases": len(cases), "right": len(cases) - len(misses), "misses": misses[:5]}
        if category == "extraction":
            entry["valid_json"] = sum(_is_json(text) for text in given)
        report[category] = entry
        right, total = right + entry["right"], total + entry["cases"]
        print(f"held out: {category} {entry['right']}/{entry['cases']}", flush=True)  # noqa: T201
    report["all"] = {"cases": total, "right": right}
    return report


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
