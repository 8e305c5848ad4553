"""The events of one answer, and the text and tokens in them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from themis_core.contracts import Backend
from themis_core.messages import ChatMessage, Delta, Done, Finished, GenerateRequest, Started
from themis_testkit.conformance.base import (
    ConformanceBase,
    collect,
    complete,
    completion,
    fields,
    need,
    on_backend,
    visible_ids,
)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class AnswerChecks(ConformanceBase):
    """`themis_core.messages.events` fixes the order and the meaning of events."""

    @on_backend
    async def test_event_order(self, backend: Backend) -> None:
        """events: "one `Started`; then `Delta`s …; one `Finished` for each choice, after its last
        `Delta`; one `Done`, last.".
        """
        events = await collect(backend, self.request(backend))
        kinds = [type(event) for event in events]
        assert kinds[0] is Started
        assert kinds[-2:] == [Finished, Done]
        assert set(kinds[1:-2]) == {Delta}

    @on_backend
    async def test_usage_counts_the_tokens_seen(self, backend: Backend) -> None:
        """`Delta`: "`token_ids` joined are all tokens that were sampled"; `Usage` counts them."""
        request = self.request(backend)
        events = await collect(backend, request)
        result = completion(request, events)
        assert result.usage.completion_tokens == len(result.choices[0].token_ids)
        assert isinstance(events[0], Started)
        assert result.usage.prompt_tokens == events[0].prompt_tokens
        assert 0 <= result.usage.cached_tokens <= result.usage.prompt_tokens
        if backend.info.capabilities.tokenize:
            assert result.usage.prompt_tokens == len(await backend.tokenize(self.prompt))

    @on_backend
    async def test_text_is_that_of_the_tokens(self, backend: Backend) -> None:
        """`Delta.text`: "joined over all deltas it is the whole answer"."""
        need(backend, "tokenize")
        choice = await self.answer(backend)
        expected = await backend.detokenize(visible_ids(choice, backend.info))
        assert choice.text == expected

    @on_backend
    async def test_text_never_splits_characters(self, backend: Backend) -> None:
        """`Delta.text`: "never ends within a character", even where tokens do."""
        need(backend, "tokenize")
        params: dict[str, Any] = {}
        if "sampling.logit_bias" in fields(backend):
            params["logit_bias"] = dict.fromkeys(await self._split_character(backend), 100.0)
        if "sampling.temperature" in fields(backend):
            params["temperature"] = 8.0
        for seed in range(4):
            if "sampling.seed" in fields(backend):
                params["seed"] = seed
            request = self.request(backend, self.unicode_prompt, **params)
            events = await collect(backend, request)
            choice = completion(request, events).choices[0]
            expected = await backend.detokenize(visible_ids(choice, backend.info))
            assert choice.text == expected
            if REPLACEMENT not in expected:
                texts = [event.text for event in events if isinstance(event, Delta)]
                assert not any(REPLACEMENT in text for text in texts)

    async def _split_character(self, backend: Backend) -> tuple[int, ...]:
        """The tokens of the character that takes the fewest, but more than one; or none."""
        found = [await backend.tokenize(character) for character in self.unicode_prompt]
        return min((ids for ids in found if len(ids) > 1), key=len, default=())

    @on_backend
    async def test_tokenize_and_detokenize_agree(self, backend: Backend) -> None:
        """`detokenize`: "The text of token ids"; a start token or space may precede the text."""
        need(backend, "tokenize")
        for text in (self.prompt, self.unicode_prompt):
            back = await backend.detokenize(await backend.tokenize(text))
            assert back.removeprefix(" ") == text.removeprefix(" ")

    @on_backend
    async def test_detokenize_replaces_broken_characters(self, backend: Backend) -> None:
        """`detokenize`: "bytes that are no character become U+FFFD"; it raises for none of them."""
        need(backend, "tokenize")
        ids = await backend.tokenize(self.unicode_prompt)
        for start in range(len(ids)):
            assert isinstance(await backend.detokenize(ids[start : start + 1]), str)

    @on_backend
    async def test_greedy_is_deterministic(self, backend: Backend) -> None:
        """`Capabilities`: "`deterministic` means that greedy output is the same on each run."."""
        need(backend, "deterministic", "sampling.temperature")
        first = await self.answer(backend)
        for _ in range(4):  # Chance could give the same twice.
            assert await self.answer(backend) == first

    @on_backend
    async def test_prompt_as_token_ids(self, backend: Backend) -> None:
        """`tokenize`: "The token ids that `generate` would see for this prompt"."""
        need(backend, "tokenize", "prompt_token_ids", "sampling.temperature", "deterministic")
        ids = await backend.tokenize(self.prompt)
        assert await self.answer(backend, ids) == await self.answer(backend)

    @on_backend
    async def test_messages_pass_through_the_template(self, backend: Backend) -> None:
        """`tokenize`: "The token ids that `generate` would see for … these messages"."""
        need(backend, "messages", "tokenize", "prompt_token_ids", "sampling.temperature")
        need(backend, "deterministic")
        messages = (
            ChatMessage(role="user", content="Hello."),
            ChatMessage(role="assistant", content="Hello!"),
            ChatMessage(role="user", content=self.prompt),
        )
        ids = await backend.tokenize(messages)
        by_ids = self.request(backend, ids)
        by_messages = GenerateRequest(messages=messages, sampling=by_ids.sampling)
        expected = await complete(backend, by_ids)
        answer = await complete(backend, by_messages)
        assert answer.choices == expected.choices
        assert answer.usage.prompt_tokens == len(ids)

    @on_backend
    async def test_special_tokens_in_a_prompt_are_text(self, backend: Backend) -> None:
        """`GenerateRequest`: "special tokens written in it are plain text"."""
        need(backend, "tokenize")
        for text in ("<|im_start|>", "</s>", "<|endoftext|>", "<|eot_id|>"):
            back = await backend.detokenize(await backend.tokenize(f"a{text}b"))
            assert text in back, f"{text} has become a special token"

    @on_backend
    async def test_choices_are_separate(self, backend: Backend) -> None:
        """`sampling.n`: so many choices, each with its own `Finished`; usage counts them all."""
        need(backend, "sampling.n")
        request = self.request(backend, n=3)
        result = await complete(backend, request)
        assert [choice.index for choice in result.choices] == [0, 1, 2]
        total = sum(len(choice.token_ids) for choice in result.choices)
        assert result.usage.completion_tokens == total

    @on_backend
    async def test_a_generator_can_be_closed_twice(self, backend: Backend) -> None:
        """`generate`: "Closing twice is fine", also before the first and after the last event."""
        unused = backend.generate(self.request(backend))
        await unused.aclose()
        events = backend.generate(self.request(backend))
        async for _ in events:
            await asyncio.sleep(0)
        await events.aclose()
        await events.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
