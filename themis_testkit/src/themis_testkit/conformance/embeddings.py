"""Embeddings: one vector of length 1 for each text, whatever else is embedded beside it."""

from __future__ import annotations

import asyncio
import math

import pytest

from themis_core.contracts import Backend
from themis_core.messages import EmbedRequest
from themis_testkit.conformance.base import ConformanceBase, complete, idle, need, on_backend

Vector = tuple[float, ...]

# Rounding differs with what is computed together; another text is much farther away.
_CLOSE = 0.9999


class EmbeddingChecks(ConformanceBase):
    """`Backend.embed`."""

    @on_backend
    async def test_vectors_have_length_one(self, backend: Backend) -> None:
        """`embed`: vectors are normalised, of one size, and finite."""
        vectors = await self._embed(backend, *self._texts())
        assert len({len(vector) for vector in vectors}) == 1
        for vector in vectors:
            assert all(map(math.isfinite, vector))
            assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-4)

    @on_backend
    async def test_order_is_that_of_the_inputs(self, backend: Backend) -> None:
        """`embed`: "One vector for each input", in order, however they are computed."""
        texts = self._texts()
        vectors = await self._embed(backend, *texts)
        turned = await self._embed(backend, *reversed(texts))
        for one, other in zip(vectors, reversed(turned), strict=True):
            assert likeness(one, other) > _CLOSE
        for i, vector in enumerate(vectors):
            assert all(likeness(vector, other) < _CLOSE for other in vectors[:i])

    @on_backend
    async def test_together_equals_alone(self, backend: Backend) -> None:
        """A text's vector does not depend on its company: long beside short, in one or many."""
        texts = self._texts()
        alone = [(await self._embed(backend, text))[0] for text in texts]
        together = await self._embed(backend, *texts)
        at_once = await asyncio.gather(*(self._embed(backend, text) for text in texts))
        for one, two, (three,) in zip(alone, together, at_once, strict=True):
            assert likeness(one, two) > _CLOSE
            assert likeness(one, three) > _CLOSE

    @on_backend
    async def test_the_same_text_twice(self, backend: Backend) -> None:
        """The same text gives the same vector, within one request and in the next."""
        first, second = await self._embed(backend, self.prompt, self.prompt)
        (third,) = await self._embed(backend, self.prompt)
        assert likeness(first, second) > _CLOSE
        assert likeness(first, third) > _CLOSE

    @on_backend
    async def test_token_ids_are_inputs(self, backend: Backend) -> None:
        """`EmbedRequest.inputs`: "Texts (or token id sequences)"; usage counts their tokens."""
        need(backend, "embed", "tokenize")
        ids = await backend.tokenize(self.unicode_prompt)
        response = await backend.embed(EmbedRequest(inputs=(self.unicode_prompt, ids)))
        assert likeness(*response.embeddings) > _CLOSE
        assert response.usage.prompt_tokens == 2 * len(ids)
        assert response.usage.completion_tokens == 0

    @on_backend
    async def test_embedding_beside_generating(self, backend: Backend) -> None:
        """Neither changes the other."""
        need(backend, "embed", "generate", "deterministic", "sampling.temperature")
        answer = await self.answer(backend)
        vectors = await self._embed(backend, *self._texts())
        request = self.request(backend)
        work = [complete(backend, request) for _ in range(4)]
        answers, found = await asyncio.gather(
            asyncio.gather(*work), self._embed(backend, *self._texts())
        )
        assert all(completion.choices[0] == answer for completion in answers)
        for one, other in zip(found, vectors, strict=True):
            assert likeness(one, other) > _CLOSE
        await idle(backend)

    @on_backend
    async def test_a_cancelled_request_leaves_nothing(self, backend: Backend) -> None:
        """Who goes away while texts are embedded disturbs nobody who comes after."""
        (before,) = await self._embed(backend, self.prompt)
        task = asyncio.create_task(self._embed(backend, *self._texts() * 4))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (after,) = await self._embed(backend, self.prompt)
        assert likeness(before, after) > _CLOSE
        await idle(backend)

    def _texts(self) -> list[str]:
        """Long and short ones, mixed, no two alike."""
        return [
            self.unicode_prompt,
            " ".join(f"{self.prompt} {i}" for i in range(40)),
            self.prompt,
            *(f"{self.prompt} {'and again ' * (i % 4)}{i}" for i in range(6)),
        ]

    async def _embed(self, backend: Backend, *texts: str) -> tuple[Vector, ...]:
        need(backend, "embed")
        return (await backend.embed(EmbedRequest(inputs=texts))).embeddings


def likeness(one: Vector, other: Vector) -> float:
    """The cosine of the angle between two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))
