"""Where text is made: what `LocalTexts` and `ServerTexts` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from themis_core.errors import BackendFailed, ThemisError
from themis_core.messages import ChatMessage, GenerateEvent, GenerateRequest
from themis_vllm_remote.door import Order, Piece


class Answer(Protocol):
    """What becomes of the pieces of one request."""

    @property
    def done(self) -> bool:
        """True once `Done` is among the events."""
        ...

    def take(self, pieces: list[Piece]) -> tuple[list[GenerateEvent], ThemisError | None]:
        """The events of new pieces, and the error that follows them."""
        ...


class Texts(Protocol):
    """From requests to orders, and from pieces to events."""

    @property
    def fields(self) -> frozenset[str]:
        """The optional request fields that are honoured."""
        ...

    async def prepare(
        self, request: GenerateRequest, adapter: str | None, salt: str | None
    ) -> tuple[Order, Answer]:
        """Raises what is wrong with the request, before anything is sent to generate."""
        ...

    async def learn(self, pieces: list[Piece]) -> None:
        """Get ready what `Answer.take` needs for log-probabilities."""
        ...

    async def explain(self, error: ThemisError, order: Order) -> ThemisError:
        """A better error for one that the server gave, where there is one."""
        ...

    async def encode(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages through the template."""
        ...

    async def decode(self, ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        ...

    async def embeddable(
        self, inputs: tuple[str | tuple[int, ...], ...]
    ) -> Sequence[str | Sequence[int]]:
        """Inputs as the door's `embed` is to get them."""
        ...


def check_end(piece: Piece, tokens: int, limit: int | None, plugin: str) -> None:
    """Raises `BackendFailed` for an answer that the server ended for reasons of its own."""
    if piece.reason == "length" and limit is not None and tokens < limit:
        raise BackendFailed(
            f"The server ended the answer after {tokens} of {limit} tokens: it has a limit of its "
            "own, from the model's generation_config.json or its command line.",
            remedy="Start vLLM with --generation-config vllm.",
            plugin=plugin,
        )
    if piece.reason not in ("stop", "length", "tool_calls"):
        raise BackendFailed(
            f"The server ended the answer without finishing it ({piece.reason!r}).",
            remedy="Repeat the request.",
            plugin=plugin,
        )
