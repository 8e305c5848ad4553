"""What a backend sends back while it works.

The order is fixed: one `Started`; then `Delta`s, interleaved freely between the choices; one
`Finished` for each choice, after its last `Delta`; one `Done`, last. An error ends the stream by
raising a `ThemisError` instead.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from themis_core.messages.chat import ToolCall
from themis_core.messages.request import AdapterWeight

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. `cached_tokens` of the `prompt_tokens` were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """Natural log-probability of one token under the model's unmodified distribution.

    `token` is the token's bytes. `top` holds the most probable alternatives, best first, as
    (token id, token bytes, log-probability).
    """

    token_id: int
    token: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The prompt was accepted and is `prompt_tokens` long.

    `adapters` are those that were chosen by the query, where the model is set up so.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    adapters: tuple[AdapterWeight, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the call number `index` of a choice.

    The first piece of a call has `id` and `name`, and no later one has; the `arguments` of all,
    joined, are its JSON text.
    """

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """New output of choice `index`.

    `text` never ends within a character, so it can lag behind `token_ids`; joined over all deltas
    it is the whole answer. `token_ids` joined are all tokens that were sampled, the one that ended
    the generation included. `logprobs` has one entry for each token id if they were asked for.
    What the model thought before its answer (`reasoning`) and the calls that it makes
    (`tool_calls`) are no part of `text`.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """Choice `index` is complete. `matched` is the stop string or stop token id that ended it."""

    index: int = 0
    reason: FinishReason
    matched: str | int | None = None


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """Everything is complete."""

    usage: Usage


GenerateEvent = Started | Delta | Finished | Done


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One finished answer."""

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason
    matched: str | int | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """All events of one request, gathered."""

    request_id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text


class EmbedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One float32 vector for each input, in order."""

    embeddings: tuple[tuple[float, ...], ...]
    usage: Usage
