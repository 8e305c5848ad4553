"""A backend: one model that generates."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)


@runtime_checkable
class Backend(Protocol):
    """One model, whole requests, asynchronous.

    A backend is created without effort (no file is read), then started once, then used by any
    number of concurrent requests on the event loop that started it, then closed.
    `themis_testkit.BackendConformance` checks everything written here.
    """

    @property
    def info(self) -> ModelInfo:
        """Facts about the started model.

        Raises `BackendClosed` before `start` and after `aclose`, and `BackendFailed` once the
        backend has failed for good; the runtime then closes it and loads another.
        """
        ...

    async def start(self) -> None:
        """Load the model. Called once.

        Raises `ModelFileInvalid` or `ModelLoadFailed` with the true cause. If it raises or is
        cancelled, nothing stays allocated, and `aclose` may still be called.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request, in the order that `themis_core.messages.events` fixes.

        The runtime has checked the request against `info.capabilities` before.
        Raises, at the first or a later event: `InvalidRequest`, `PromptTooLong`,
        `RequestTooLarge`, `DeadlineExceeded`, `BackendFailed`, `BackendClosed`.
        Closing the generator, or cancelling the task that waits in it, stops the generation
        within one decode step and frees all it held. Closing twice is fine.
        """
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector for each input. Raises `UnsupportedField` if the model cannot embed."""
        ...

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """The token ids that `generate` would see for this prompt or these messages."""
        ...

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of token ids; bytes that are no character become U+FFFD."""
        ...

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Make a LoRA adapter usable in requests. `description` is for choosing by the query.

        Raises `UnsupportedField` where adapters are not declared, `ModelFileInvalid` with the
        cause, and `InvalidRequest` if one of that name is loaded: an adapter never changes under
        those who use it.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter. New requests that name it raise `AdapterNotFound` from now on; those
        that run with it finish first, and this waits for them. Raises `AdapterNotFound`.
        """
        ...

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """The loaded adapters with their default weights."""
        ...

    async def stats(self) -> BackendStats:
        """Counters and gauges. Never waits for a running request."""
        ...

    async def aclose(self) -> None:
        """Stop everything and free everything; requests in flight raise `BackendClosed`.

        Closing twice, or without `start`, is fine. When it returns, no thread, process or file
        descriptor of the backend is left.
        """
        ...
