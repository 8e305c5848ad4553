"""What a backend sends back while it works.

The order is fixed: one `Started`; then `Delta`s, interleaved freely between the choices; one
`Finished` for each choice, after its last `Delta`; one `Done`, last. An error ends the stream by
raising a `ThemisError` instead.
"""

from __future__ import annotations

from typing import Literal

import msgspec

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
    """The prompt was accepted and is `prompt_tokens` long."""

    prompt_tokens: int
    cached_tokens: int = 0


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """New output of choice `index`.

    `text` never ends within a character, so it can lag behind `token_ids`; joined over all deltas
    it is the whole answer. `token_ids` joined are all tokens that were sampled, the one that ended
    the generation included. `logprobs` has one entry for each token id if they were asked for.
    """

    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


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
