"""What clients ask for: prompts that nobody has sent before, unless a load is about repeating."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.vocabulary import prompts

_LISTS = 10**8  # More than there are seeds of loads.

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "status": {"type": "string", "enum": ["active", "paused", "closed"]},
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 16},
            "minItems": 1,
            "maxItems": 4,
        },
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 40},
                "number": {"type": "integer", "minimum": 1, "maximum": 9999},
                "city": {"type": "string", "maxLength": 30},
            },
            "required": ["street", "number", "city"],
            "additionalProperties": False,
        },
        "summary": {"type": "string", "maxLength": 160},
    },
    "required": ["name", "age", "status", "tags", "address", "summary"],
    "additionalProperties": False,
}
# The copying model goes by the last six tokens: so these six announce a record.
_RECORD = " lane dito rusa kalo mave:"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `tokens` are those of the prompt, where they are known."""

    prompt: str
    tokens: int | None
    max_tokens: int
    schema: dict[str, Any] | None = None
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What all clients share, in order; and what each of the clients beside them repeats."""

    asks: Sequence[Ask]
    beside: Sequence[Iterator[Ask]] = field(default_factory=list)


def unique(count: int, seed: int, *, tokens: int, new: int) -> Traffic:
    """Prompts that share nothing."""
    return Traffic([Ask(prompt, tokens, new) for prompt in prompts(count, tokens, seed)])


def shared_prefix(count: int, seed: int, *, prefix: int, tail: int, new: int) -> Traffic:
    """One beginning, new with every seed, and a tail for each request."""
    [beginning] = prompts(1, prefix, seed)
    tails = prompts(count, tail, seed + _LISTS)
    return Traffic([Ask(beginning + tail_, prefix + tail, new) for tail_ in tails])


def repeated(count: int, seed: int, *, different: int, tokens: int, new: int) -> Traffic:
    """The same few prompts in turn."""
    few = prompts(different, tokens, seed)
    return Traffic([Ask(few[i % different], tokens, new) for i in range(count)])


def mixed(
    count: int, seed: int, *, tokens: int, new: int, long: int, long_new: int, others: int
) -> Traffic:
    """Short prompts; beside them, `others` clients ask long ones without end."""

    def without_end(number: int) -> Iterator[Ask]:
        for turn in range(_LISTS):
            [prompt] = prompts(1, long, seed + _LISTS * (1 + number * _LISTS + turn))
            yield Ask(prompt, long, long_new)

    short = unique(count, seed, tokens=tokens, new=new).asks
    return Traffic(short, [without_end(number) for number in range(others)])


def copied(count: int, seed: int, *, tokens: int, new: int) -> Traffic:
    """Texts that are to be written down once more: after the text, its first words stand again."""
    asks = []
    for prompt in prompts(count, tokens, seed):
        words = [f" {word}" for word in prompt.split()]
        begin = words[:6]
        copy = "".join(words[6 : 6 + new])
        asks.append(Ask(prompt + "".join(begin), tokens + len(begin), new, expected=copy))
    return Traffic(asks)


def records(count: int, seed: int, *, new: int) -> Traffic:
    """Words, a record in JSON, more words; and the answer is to be a record, by the schema.

    The copying model writes the prompt's record: so it follows the schema by itself, as a model
    that was trained to does. The random one is against it at every token.
    """
    chance = random.Random(seed)
    asks = []
    for before, after in zip(
        prompts(count, 32, seed), prompts(count, 32, seed + _LISTS), strict=True
    ):
        record = json.dumps(_record(chance), separators=(",", ":"))
        prompt = f"{before}{_RECORD}{record}{after}{_RECORD}"
        asks.append(Ask(prompt, None, new, schema=SCHEMA))
    return Traffic(asks)


def _record(chance: random.Random) -> dict[str, Any]:
    words = iter(prompts(1, 40, chance.randrange(10**9))[0].split())

    def text(count: int) -> str:
        return " ".join(next(words) for _ in range(count))

    return {
        "name": text(2),
        "age": chance.randint(1, 99),
        "status": chance.choice(["active", "paused", "closed"]),
        "tags": [text(1) for _ in range(3)],
        "address": {"street": text(2), "number": chance.randint(1, 999), "city": text(1)},
        "summary": text(24),
    }
