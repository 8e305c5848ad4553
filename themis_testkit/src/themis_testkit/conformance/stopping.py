"""Where an answer ends: its length, stop strings, stop tokens, the end token, the time limit."""

from __future__ import annotations

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import DeadlineExceeded
from themis_testkit.conformance.base import ConformanceBase, complete, idle, need, on_backend


class StoppingChecks(ConformanceBase):
    """`max_tokens`, `stop` and `timeout` bind every backend; the others where declared."""

    @on_backend
    async def test_max_tokens(self, backend: Backend) -> None:
        """`max_tokens` is never exceeded, and reaching it is reported as `length`."""
        for limit in (1, 2, self.generation_tokens):
            choice = (await complete(backend, self.long_request(backend, max_tokens=limit))).choices
            assert len(choice[0].token_ids) == limit
            assert choice[0].finish_reason == "length"
            assert choice[0].matched is None

    @on_backend
    async def test_stop_string(self, backend: Backend) -> None:
        """`Finished.matched` is "the stop string … that ended it"; the text ends before it."""
        await self._check_stop(backend, length=1)

    @on_backend
    async def test_stop_string_over_several_tokens(self, backend: Backend) -> None:
        """The same, where the stop string is in no single token: none of its text is sent."""
        await self._check_stop(backend, length=12)

    async def _check_stop(self, backend: Backend, *, length: int) -> None:
        need(backend, "sampling.temperature", "deterministic")
        free = (await complete(backend, self.long_request(backend, max_tokens=48))).choices[0]
        middle = len(free.text) // 2
        stop = free.text[middle : middle + length]
        if len(stop) < length:
            pytest.skip(f"the model's answer is too short: {free.text!r}")
        request = self.long_request(backend, max_tokens=48, stop=("\0never\0", stop))
        choice = (await complete(backend, request)).choices[0]
        assert choice.text == free.text[: free.text.index(stop)]
        assert choice.finish_reason == "stop"
        assert choice.matched == stop
        assert choice.token_ids == free.token_ids[: len(choice.token_ids)]

    @on_backend
    async def test_stop_string_that_never_comes(self, backend: Backend) -> None:
        """Text held back because a stop string could begin there is sent in the end."""
        need(backend, "sampling.temperature", "deterministic")
        free = await self.answer(backend)
        if not free.text:
            pytest.skip("the model's answer is empty")
        choice = await self.answer(backend, stop=(free.text[-1] + "\0never\0",))
        assert choice == free

    @on_backend
    async def test_stop_token_ids(self, backend: Backend) -> None:
        """`Finished.matched` is the "stop token id that ended it"; it has no text."""
        need(backend, "sampling.stop_token_ids", "sampling.temperature", "deterministic")
        free = (await complete(backend, self.long_request(backend, max_tokens=24))).choices[0]
        stop = free.token_ids[len(free.token_ids) // 2]
        expected = free.token_ids[: free.token_ids.index(stop) + 1]
        request = self.long_request(backend, max_tokens=24, stop_token_ids=(stop,))
        choice = (await complete(backend, request)).choices[0]
        assert choice.token_ids == expected
        assert choice.finish_reason == "stop"
        assert choice.matched == stop
        assert free.text.startswith(choice.text)
        if backend.info.capabilities.tokenize:
            assert choice.text == await backend.detokenize(expected[:-1])

    @on_backend
    async def test_min_tokens(self, backend: Backend) -> None:
        """`min_tokens`: no end before so many tokens, whatever would end the answer."""
        need(backend, "sampling.min_tokens", "sampling.stop_token_ids", "sampling.temperature")
        first = (await self.answer(backend)).token_ids[0]
        choice = await self.answer(backend, min_tokens=8, stop_token_ids=(first,))
        assert len(choice.token_ids) >= 8

    @on_backend
    async def test_ignore_eos(self, backend: Backend) -> None:
        """`ignore_eos`: only `max_tokens` ends the answer."""
        need(backend, "sampling.ignore_eos")
        for prompt in (self.prompt, self.unicode_prompt):
            choice = await self.answer(backend, prompt, ignore_eos=True, max_tokens=64)
            assert len(choice.token_ids) == 64
            assert choice.finish_reason == "length"

    @on_backend
    async def test_timeout(self, backend: Backend) -> None:
        """`generate` raises `DeadlineExceeded`; "`timeout` is in seconds from acceptance"."""
        request = msgspec.structs.replace(self.long_request(backend), timeout=self.short_timeout)
        with pytest.raises(DeadlineExceeded):
            await complete(backend, request)
        await idle(backend)
        patient = msgspec.structs.replace(self.request(backend), timeout=self.deadline)
        await complete(backend, patient)
