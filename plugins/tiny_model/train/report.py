"""The report on a trained set of models: held-out scores, adapters, draft model, times."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from .chat import END, render
from .corpus import Conversation, Fact, load_facts
from .evaluate import evaluate
from .generate import answer
from .model import Llama

ADAPTER_CASES = 150
DRAFT_CASES = 150


def write_report(
    path: Path,
    models: dict[str, Llama],
    tokenizer: Tokenizer,
    seed: int,
    minutes: dict[str, float],
) -> None:
    """Evaluates ``base``, ``draft``, ``german`` and ``json`` of ``models``, and writes JSON."""
    report: dict[str, Any] = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": f"python -m train --seed {seed}",
        "parameters": {
            name: sum(w.numel() for w in models[name].parameters()) for name in ("base", "draft")
        },
        "training_minutes": minutes,
        "held_out": evaluate(models["base"], tokenizer),
        "adapters": {name: _adapter(models[name], tokenizer, name) for name in ("german", "json")},
        "draft_agreement": _agreement(models["base"], models["draft"], tokenizer),
    }
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _held_facts(count: int) -> list[Fact]:
    facts = [fact for fact in load_facts() if fact.held_out["en"]]
    return facts[:: max(1, len(facts) // count)][:count]


def _adapter(model: Llama, tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """English held-out wordings under the adapter: exact matches and the form of the answers."""
    facts = _held_facts(ADAPTER_CASES)
    prompts = [_prompt(fact.held_out["en"][0]) for fact in facts]
    given = answer(model, tokenizer, prompts, limit=160)
    if name == "german":
        wanted = [fact.answers["de"] for fact in facts]
    else:
        wanted = [json.dumps({"answer": fact.short["en"]}, ensure_ascii=False) for fact in facts]
    pairs = list(zip(given, wanted, strict=True))
    result: dict[str, Any] = {"cases": len(facts), "right": sum(g == w for g, w in pairs)}
    if name == "json":
        result["in_form"] = sum(g.startswith('{"answer": ') and g.endswith("}") for g in given)
    result["misses"] = [{"wanted": w, "given": g} for g, w in pairs if g != w][:5]
    return result


@torch.no_grad()
def _agreement(base: Llama, draft: Llama, tokenizer: Tokenizer) -> dict[str, Any]:
    """How often the draft model's next token is the base model's, along right answers."""
    same = total = 0
    end = tokenizer.token_to_id(END)
    for fact in _held_facts(DRAFT_CASES):
        start = tokenizer.encode(_prompt(fact.held_out["en"][0])).ids
        reply = [*tokenizer.encode(fact.answers["en"]).ids, end]
        ids = torch.tensor([start + reply])
        chosen = [model(ids)[0, len(start) - 1 : -1].argmax(dim=-1) for model in (base, draft)]
        same += int((chosen[0] == chosen[1]).sum())
        total += len(reply)
    return {"tokens": total, "same": same}


def _prompt(question: str) -> str:
    conversation = Conversation([{"role": "user", "content": question}])
    return render(conversation.messages, prompt=True)
