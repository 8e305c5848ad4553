"""Constrained output: whatever the kind, every finished answer belongs to the language."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import InvalidRequest
from themis_core.messages import Choice, Constraint, Delta, GenerateRequest
from themis_testkit.conformance.base import (
    ConformanceBase,
    complete,
    completion,
    fields,
    idle,
    need,
    on_backend,
)

_ENOUGH = 160

_SCHEMA = {
    "type": "object",
    "properties": {
        "farbe": {"enum": ["grün", "grau", "日本"]},
        "größe": {"type": "integer", "minimum": 1, "maximum": 99},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
    },
    "required": ["farbe", "größe", "code"],
    "additionalProperties": False,
}
_CHOICES = ["violett", "grün", "日本 🎉", "gr"]
_SUMS = "root ::= number ([+*] number){1,3}\nnumber ::= [1-9] [0-9]?"


def _is_colour(document: Any) -> bool:
    """What the schema says, written out, so that no validator is needed."""
    return (
        {"farbe", "größe", "code"} <= document.keys() <= {"farbe", "größe", "flags", "code"}
        and document["farbe"] in ("grün", "grau", "日本")
        and isinstance(document["größe"], int)
        and 1 <= document["größe"] <= 99
        and re.fullmatch("[A-Z]{2}-[0-9]{1,3}", document["code"]) is not None
        and len(document.get("flags", [])) <= 2
        and all(isinstance(flag, bool) for flag in document.get("flags", []))
    )


_KINDS: dict[str, tuple[Constraint, Any]] = {
    "json_schema": (
        Constraint(kind="json_schema", value=_SCHEMA),
        lambda text: _is_colour(json.loads(text)),
    ),
    "regex": (
        Constraint(kind="regex", value="[a-f]{2}(-[0-9]{2}){1,3}"),
        lambda text: re.fullmatch("[a-f]{2}(-[0-9]{2}){1,3}", text),
    ),
    "lark": (
        Constraint(kind="lark", value='start: "<" WORD ("," WORD)~1..2 ">"\nWORD: /[a-zé]{1,4}/'),
        lambda text: re.fullmatch("<[a-zé]{1,4}(,[a-zé]{1,4}){1,2}>", text),
    ),
    "gbnf": (
        Constraint(kind="gbnf", value=_SUMS),
        lambda text: re.fullmatch("[1-9][0-9]?([+*][1-9][0-9]?){1,3}", text),
    ),
    "choice": (Constraint(kind="choice", value=_CHOICES), lambda text: text in _CHOICES),
}

_IMPOSSIBLE = {
    "not a schema": Constraint(kind="json_schema", value={"minimum": "three"}),
    "no document": Constraint(kind="json_schema", value=False),
    "unknown keyword": Constraint(kind="json_schema", value={"no such keyword": 1}),
    "remote reference": Constraint(kind="json_schema", value={"$ref": "http://127.0.0.1/x"}),
    "look-ahead": Constraint(kind="regex", value="a(?=b)"),
    "unclosed": Constraint(kind="regex", value="(a"),
    "undefined rule": Constraint(kind="lark", value='start: "a" nowhere'),
    "no root": Constraint(kind="gbnf", value='x ::= "a"'),
    "no choice": Constraint(kind="choice", value=[]),
    "no text": Constraint(kind="regex", value=5),
}


class ConstraintChecks(ConformanceBase):
    """`themis_core.messages.Constraint`: "A language that the output must belong to"."""

    async def constrained(
        self, backend: Backend, constraint: Constraint, **sampling: Any
    ) -> Choice:
        """The answer to an ordinary request under a constraint, of up to 160 tokens."""
        request = self.request(backend, **({"max_tokens": _ENOUGH} | sampling))
        request = msgspec.structs.replace(request, constraint=constraint)
        return (await complete(backend, request)).choices[0]

    @pytest.mark.parametrize("kind", _KINDS)
    @on_backend
    async def test_every_kind(self, backend: Backend, kind: str) -> None:
        """A finished answer is in the language, greedy or sampled; `stop` says it is complete."""
        need(backend, "constraint", "sampling.temperature")
        constraint, belongs = _KINDS[kind]
        for options in ({"temperature": 0.0}, *self._hot(backend)):
            choice = await self.constrained(backend, constraint, **options)
            assert choice.finish_reason == "stop", choice
            assert choice.matched is None or not isinstance(choice.matched, str)
            assert belongs(choice.text), choice.text

    def _hot(self, backend: Backend) -> list[dict[str, Any]]:
        seeded = "sampling.seed" in fields(backend)
        return [{"temperature": 1.0} | ({"seed": seed} if seeded else {}) for seed in range(4)]

    @on_backend
    async def test_a_cut_answer_is_a_beginning(self, backend: Backend) -> None:
        """`length` says that `max_tokens` came before the end of the language."""
        need(backend, "constraint")
        constraint = Constraint(kind="choice", value=["violett und grün und grau " * 10])
        choice = await self.constrained(backend, constraint, max_tokens=2)
        assert choice.finish_reason == "length"
        assert len(choice.token_ids) == 2
        assert constraint.value[0].startswith(choice.text)

    @pytest.mark.parametrize("what", _IMPOSSIBLE)
    @on_backend
    async def test_what_cannot_be_honoured_is_refused(self, backend: Backend, what: str) -> None:
        """Refused before anything is generated, naming the field; the backend goes on."""
        need(backend, "constraint")
        request = msgspec.structs.replace(self.request(backend), constraint=_IMPOSSIBLE[what])
        with pytest.raises(InvalidRequest) as caught:
            await self._generates_nothing(backend, request)
        assert str(caught.value.field).startswith("constraint")
        await idle(backend)
        assert (await self.constrained(backend, _KINDS["choice"][0])).text in _CHOICES

    async def _generates_nothing(self, backend: Backend, request: GenerateRequest) -> None:
        async with aclosing(backend.generate(request)) as events:
            async for event in events:
                assert not isinstance(event, Delta)

    @on_backend
    async def test_company_changes_nothing(self, backend: Backend) -> None:
        """Eight at once, of all kinds and of none, answer as each does alone."""
        need(backend, "constraint", "deterministic")
        several: list[Constraint | None] = [constraint for constraint, _ in _KINDS.values()]
        several += [None, several[0], several[3]]
        requests = [
            msgspec.structs.replace(
                self.request(backend, max_tokens=_ENOUGH if constraint else 24),
                constraint=constraint,
            )
            for constraint in several
        ]
        alone = [(await complete(backend, request)).choices[0] for request in requests]
        fresh = [
            msgspec.structs.replace(request, request_id=f"{request.request_id}-again")
            for request in requests
        ]
        together = await asyncio.gather(*(complete(backend, request) for request in fresh))
        assert [each.choices[0].text for each in together] == [each.text for each in alone]
        assert [c.choices[0].token_ids for c in together] == [c.token_ids for c in alone]

    @on_backend
    async def test_logprobs_under_a_constraint(self, backend: Backend) -> None:
        """One `TokenLogprob` for each token id; the text is that of the answer without them."""
        need(backend, "constraint", "sampling.logprobs", "deterministic")
        constraint = _KINDS["gbnf"][0]
        plain = await self.constrained(backend, constraint)
        choice = await self.constrained(backend, constraint, logprobs=3)
        assert choice.text == plain.text
        assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
        assert all(len(entry.top) == 3 for entry in choice.logprobs)

    @on_backend
    async def test_text_arrives_in_whole_characters(self, backend: Backend) -> None:
        """Characters of several tokens are put together under a constraint as well."""
        need(backend, "constraint")
        text = "Grüße, 日本 🎉"
        request = self.request(backend, max_tokens=_ENOUGH)
        constraint = Constraint(kind="choice", value=[text])
        request = msgspec.structs.replace(request, constraint=constraint)
        events = [event async for event in backend.generate(request)]
        assert completion(request, events).choices[0].text == text
        assert all("\ufffd" not in e.text for e in events if isinstance(e, Delta))
