"""What all ways to vLLM have in common: what goes in (`Order`), what comes out (`Piece`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from themis_core.messages import ChatMessage, GenerateRequest, Tool, ToolCallDelta
from themis_engine.runner import Tokenizer


@dataclass(frozen=True, slots=True)
class Order:
    """One generation, checked, as a door carries it.

    `ids` is the prompt; without it the server makes one of the request's messages. `limit` is the
    number of tokens to ask for (None: as many as the context holds). `structured` is what vLLM
    calls structured outputs: one key of json, regex, choice and grammar. `salt` separates the
    prefix cache. `texts`: the server is to make the text, too. `head` says where the prompt's
    prefix may be cached already.
    """

    request: GenerateRequest
    ids: list[int] | None
    limit: int | None
    adapter: str | None = None
    structured: Mapping[str, Any] | None = None
    salt: str | None = None
    texts: bool = False
    head: tuple[int, ...] = ()


@dataclass(slots=True)
class Piece:
    """New output of choice `index`; the first of an answer says how long its prompt was.

    `logprobs` has, for each token, its log-probability and alternatives as (id, log-probability),
    in any order. `reason` is set on the last piece of a choice: stop, length, tool_calls or abort;
    `stop_id` is the stop token id that ended it.
    """

    index: int = 0
    token_ids: Sequence[int] = ()
    logprobs: Sequence[tuple[float, Sequence[tuple[int, float]]]] = ()
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reason: str | None = None
    stop_id: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a door learned when it opened. Lengths in tokens; 0 where it cannot be known.

    `tokenizer` is there if the server gave its files, and `adapters` are those it has loaded.
    """

    model: str
    context: int
    vocab_size: int = 0
    version: str = ""
    generate: bool = True
    embed: bool = False
    tokenizer: Tokenizer | None = None
    adapters: tuple[str, ...] = ()
    takes_adapters: bool = False


@dataclass(slots=True)
class Load:
    """How busy a server is: requests that run or wait, of all its clients."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    counters: dict[str, float] = field(default_factory=dict)


class Door(Protocol):
    """One way to one vLLM. Everything raises errors of `themis_core` only."""

    @property
    def where(self) -> str:
        """What errors call it."""
        ...

    async def open(self) -> Facts:
        """Connect, and learn. Raises `ModelLoadFailed`; then nothing stays open."""
        ...

    def generate(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """The pieces, as they come. Closing it, or cancelling, stops the generation at vLLM."""
        ...

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embedded:
        """One vector for each input."""
        ...

    async def encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The server's token ids of a text, or of messages through its template."""
        ...

    async def decode(self, ids: Sequence[int]) -> str:
        """The server's text of token ids."""
        ...

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter; `path` is one of the server's host.

        Raises `InvalidRequest` for the field `name` if the server has one of that name already.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Unload it. That it is gone already is fine."""
        ...

    async def load(self) -> Load:
        """How busy the server is."""
        ...

    async def back(self) -> None:
        """Wait until a server that has died is healthy again. Raises `BackendFailed` in the end."""
        ...

    async def aclose(self) -> None:
        """Close all connections. Twice is fine."""
        ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of the inputs, and the tokens of all inputs."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
