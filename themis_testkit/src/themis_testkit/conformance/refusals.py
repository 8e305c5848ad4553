"""Requests that cannot be honoured: the right error, and the backend works on."""

from __future__ import annotations

import pytest

from themis_core.contracts import Backend
from themis_core.errors import InvalidRequest, PromptTooLong, ThemisError
from themis_core.messages import GenerateRequest
from themis_testkit.conformance.base import ConformanceBase, complete, idle, need, on_backend


class RefusalChecks(ConformanceBase):
    """`generate` raises what the contract lists, and never shortens or ignores instead."""

    @on_backend
    async def test_prompt_too_long(self, backend: Backend) -> None:
        """`PromptTooLong`: "The prompt … exceeds the model's context."."""
        context = _context(backend)
        # Distinct numbers: a tokenizer may turn repetitions into few tokens.
        text = " ".join(str(i) for i in range(context))
        await self._refuses(backend, self.request(backend, text, max_tokens=None), PromptTooLong)

    @on_backend
    async def test_max_tokens_beyond_the_context(self, backend: Backend) -> None:
        """`PromptTooLong`: "… or the prompt plus `max_tokens`": never shortened silently."""
        request = self.request(backend, max_tokens=_context(backend))
        await self._refuses(backend, request, PromptTooLong)

    @on_backend
    async def test_prompt_fills_the_context(self, backend: Backend) -> None:
        """One token fewer than the context is no error: room for one token is left."""
        need(backend, "prompt_token_ids", "tokenize")
        context = _context(backend)
        if 0 < (await backend.stats()).kv_capacity < context:
            pytest.skip("the KV cache is smaller than one context")
        token = (await backend.tokenize(self.prompt))[-1]
        request = self.request(backend, (token,) * (context - 1), max_tokens=1)
        assert (await complete(backend, request)).usage.total_tokens == context
        request = self.request(backend, (token,) * context, max_tokens=None)
        await self._refuses(backend, request, PromptTooLong)

    @pytest.mark.parametrize("beyond", [0, 1, 2**31, 2**63, None])
    @on_backend
    async def test_unknown_token_ids_in_the_prompt(
        self, backend: Backend, beyond: int | None
    ) -> None:
        """`InvalidRequest` for ids that the vocabulary lacks, `None` standing for -1."""
        need(backend, "prompt_token_ids")
        wrong = -1 if beyond is None else _vocabulary(backend) + beyond
        await self._refuses(backend, self.request(backend, (wrong,)), InvalidRequest, "prompt")

    @on_backend
    async def test_unknown_token_ids_in_logit_bias(self, backend: Backend) -> None:
        """`InvalidRequest`, not a bias that is left out."""
        need(backend, "sampling.logit_bias")
        for wrong in (-1, _vocabulary(backend)):
            request = self.request(backend, logit_bias={wrong: 1.0})
            await self._refuses(backend, request, InvalidRequest, "sampling.logit_bias")

    @on_backend
    async def test_unknown_stop_token_ids(self, backend: Backend) -> None:
        """`InvalidRequest`, not a stop token that never comes."""
        need(backend, "sampling.stop_token_ids")
        for wrong in (-1, _vocabulary(backend)):
            request = self.request(backend, stop_token_ids=(wrong,))
            await self._refuses(backend, request, InvalidRequest, "sampling.stop_token_ids")

    async def _refuses(
        self,
        backend: Backend,
        request: GenerateRequest,
        error: type[ThemisError],
        field: str | None = None,
    ) -> None:
        """The request raises the error, naming a field, and an ordinary one then succeeds."""
        with pytest.raises(error) as caught:
            await complete(backend, request)
        assert caught.value.field == field if field else caught.value.field
        await idle(backend)
        assert (await complete(backend, self.request(backend))).choices


def _context(backend: Backend) -> int:
    length = backend.info.context_length
    if not length:
        pytest.skip("info.context_length is not known")
    return length


def _vocabulary(backend: Backend) -> int:
    size = backend.info.vocab_size
    if not size:
        pytest.skip("info.vocab_size is not known")
    return size
