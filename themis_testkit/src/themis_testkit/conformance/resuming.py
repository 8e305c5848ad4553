"""Going on where another backend, now gone, has stopped."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import InvalidRequest
from themis_core.messages import Constraint, GenerateRequest
from themis_testkit.conformance.base import ConformanceBase, complete, fields, need, on_backend

_WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5, "seed": 3},
    {"temperature": 1.5, "seed": 3, "frequency_penalty": 1.0, "repetition_penalty": 1.2},
    {"temperature": 1.5, "seed": 4, "min_tokens": 20},
]


class ResumeChecks(ConformanceBase):
    """`resume_token_ids`: "they count as output, and the events go on after them"."""

    @pytest.mark.parametrize("sampling", _WAYS, ids=str)
    @on_backend
    async def test_the_rest_is_the_same(self, backend: Backend, sampling: dict[str, Any]) -> None:
        """What comes after the resumed tokens is what would have come."""
        need(backend, "resume_token_ids", "sampling.temperature", "deterministic")
        need(backend, *(f"sampling.{name}" for name in sampling))
        request = self.request(backend, **sampling)
        whole = await complete(backend, request)
        ids = whole.choices[0].token_ids
        for length in {1, 3, len(ids) // 2, len(ids) - 1}:
            rest = await complete(backend, _resumed(request, ids[:length]))
            choice = rest.choices[0]
            assert choice.token_ids == ids[length:]
            assert choice.finish_reason == whole.choices[0].finish_reason
            assert whole.choices[0].text.endswith(choice.text)
            assert rest.usage.completion_tokens == whole.usage.completion_tokens
            assert rest.usage.prompt_tokens == whole.usage.prompt_tokens

    @on_backend
    async def test_characters_and_stop_strings_across_the_seam(self, backend: Backend) -> None:
        """A stop string that began before the seam is found behind it."""
        need(backend, "resume_token_ids", "sampling.temperature", "deterministic")
        plain = await self.answer(backend)
        text = plain.text
        stop = text[len(text) // 2 : len(text) // 2 + 6]
        request = self.request(backend, stop=(stop,))
        whole = await complete(backend, request)
        assert whole.choices[0].matched == stop
        ids = whole.choices[0].token_ids
        for length in range(1, len(ids)):
            rest = (await complete(backend, _resumed(request, ids[:length]))).choices[0]
            assert rest.matched == stop
            assert rest.token_ids == ids[length:]

    @on_backend
    async def test_a_constraint_across_the_seam(self, backend: Backend) -> None:
        """The constraint stands where the resumed output ends."""
        need(backend, "resume_token_ids", "constraint", "sampling.temperature", "deterministic")
        constraint = Constraint(kind="regex", value="[a-f]{4}-[0-9]{6}")
        request = msgspec.structs.replace(self.request(backend), constraint=constraint)
        whole = (await complete(backend, request)).choices[0]
        for length in range(1, len(whole.token_ids)):
            again = _resumed(request, whole.token_ids[:length])
            assert (await complete(backend, again)).choices[0].token_ids == whole.token_ids[length:]

    @on_backend
    async def test_nothing_left_to_generate(self, backend: Backend) -> None:
        """As many tokens as `max_tokens` leave nothing to do, which is said."""
        need(backend, "resume_token_ids")
        ids = (await self.answer(backend)).token_ids
        request = _resumed(self.request(backend, max_tokens=len(ids)), ids)
        with pytest.raises(InvalidRequest) as caught:
            await complete(backend, request)
        assert caught.value.field == "resume_token_ids"

    @on_backend
    async def test_truncated_prompts(self, backend: Backend) -> None:
        """`truncate_prompt_tokens` "keeps so many tokens of the prompt, its last"."""
        need(backend, "truncate_prompt_tokens", "prompt_token_ids", "tokenize")
        need(backend, "sampling.temperature", "deterministic")
        ids = await backend.tokenize("The quick brown fox jumps over the lazy dog")
        assert "prompt_token_ids" in fields(backend)
        short = await complete(backend, self.request(backend, ids[-4:]))
        cut = msgspec.structs.replace(self.request(backend, ids), truncate_prompt_tokens=4)
        answer = await complete(backend, cut)
        assert answer.usage.prompt_tokens == 4
        assert answer.choices[0].token_ids == short.choices[0].token_ids
        longer = msgspec.structs.replace(cut, truncate_prompt_tokens=len(ids) + 5)
        assert (await complete(backend, longer)).usage.prompt_tokens == len(ids)


def _resumed(request: GenerateRequest, ids: tuple[int, ...]) -> GenerateRequest:
    return msgspec.structs.replace(request, resume_token_ids=ids)
