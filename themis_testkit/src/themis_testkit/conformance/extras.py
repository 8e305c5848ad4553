"""What only some backends can: embeddings, adapters, constraints. The others must say so."""

from __future__ import annotations

import math

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import AdapterNotFound, UnsupportedField
from themis_core.messages import AdapterWeight, Constraint, EmbedRequest
from themis_testkit.conformance.base import ConformanceBase, complete, idle, need, on_backend


class ExtraChecks(ConformanceBase):
    """A capability is either declared and there, or not declared and refused."""

    @on_backend
    async def test_no_embeddings(self, backend: Backend) -> None:
        """`embed`: "Raises `UnsupportedField` if the model cannot embed."."""
        if backend.info.capabilities.embed:
            pytest.skip("capability embed is declared")
        with pytest.raises(UnsupportedField):
            await backend.embed(EmbedRequest(inputs=(self.prompt,)))

    @on_backend
    async def test_embeddings(self, backend: Backend) -> None:
        """`embed`: "One vector for each input", of one length, in order."""
        need(backend, "embed")
        response = await backend.embed(EmbedRequest(inputs=(self.prompt, self.unicode_prompt)))
        alone = await backend.embed(EmbedRequest(inputs=(self.unicode_prompt,)))
        first, second = response.embeddings
        assert len(first) == len(second) > 0
        assert all(map(math.isfinite, first + second))
        assert second == pytest.approx(alone.embeddings[0], rel=1e-3, abs=1e-4)
        assert response.usage.prompt_tokens > 0

    @on_backend
    async def test_no_adapters(self, backend: Backend) -> None:
        """`load_adapter`: "Raises `UnsupportedField`" where adapters are not declared."""
        if backend.info.capabilities.adapters:
            pytest.skip("capability adapters is declared")
        with pytest.raises(UnsupportedField):
            await backend.load_adapter("style", "style.gguf")
        with pytest.raises(AdapterNotFound):
            await backend.unload_adapter("style")
        assert await backend.adapters() == ()

    @on_backend
    async def test_unknown_adapters(self, backend: Backend) -> None:
        """An adapter that is not loaded is an error, never ignored."""
        need(backend, "adapters")
        with pytest.raises(AdapterNotFound):
            await backend.unload_adapter("no such adapter")
        request = msgspec.structs.replace(
            self.request(backend), adapters=(AdapterWeight(name="no such adapter"),)
        )
        with pytest.raises(AdapterNotFound):
            await complete(backend, request)
        await idle(backend)

    @on_backend
    async def test_choice_constraint(self, backend: Backend) -> None:
        """`Constraint`: "A language that the output must belong to"."""
        need(backend, "constraint")
        words = ["violet", "green", "grey"]
        constraint = Constraint(kind="choice", value=words)
        request = msgspec.structs.replace(self.request(backend), constraint=constraint)
        choice = (await complete(backend, request)).choices[0]
        assert choice.text in words
        assert choice.finish_reason == "stop"
