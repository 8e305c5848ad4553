"""What vLLM streams, on its three routes, as `Piece`s. Unknown members are passed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from themis_core.errors import ThemisError
from themis_core.messages import ToolCallDelta
from themis_vllm_remote.door import Piece
from themis_vllm_remote.http.failures import failure, lost

Alternatives = list[tuple[int, float]]


class _Logprobs(msgspec.Struct):
    """Of completions: parallel lists. Tokens are written as `token_id:7`."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []


class _CompletionChoice(msgspec.Struct):
    index: int = 0
    text: str = ""
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class CompletionChunk(msgspec.Struct):
    """An event of `/v1/completions`."""

    choices: list[_CompletionChoice] = []
    error: Any = None

    def pieces(self) -> list[Piece]:
        """One for each choice in it."""
        return [
            Piece(
                index=c.index,
                token_ids=c.token_ids or (),
                logprobs=() if c.logprobs is None else _of_completion(c.logprobs),
                text=c.text,
                reason=c.finish_reason,
                stop_id=_stop_id(c.stop_reason),
                prompt_tokens=None if c.prompt_token_ids is None else len(c.prompt_token_ids),
            )
            for c in self.choices
        ]


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Alternative(msgspec.Struct):
    logprob: float
    token: str = ""
    token_id: int | None = None


class _Entry(msgspec.Struct):
    logprob: float
    token: str = ""
    token_id: int | None = None
    top_logprobs: list[_Alternative] | None = None


class _Content(msgspec.Struct):
    content: list[_Entry] | None = None


class _ChatChoice(msgspec.Struct):
    index: int = 0
    delta: _Delta = _Delta()
    token_ids: list[int] | None = None
    logprobs: _Content | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChatChunk(msgspec.Struct):
    """An event of `/v1/chat/completions`."""

    choices: list[_ChatChoice] = []
    prompt_token_ids: list[int] | None = None
    error: Any = None

    def pieces(self) -> list[Piece]:
        """One for each choice in it."""
        prompt = None if self.prompt_token_ids is None else len(self.prompt_token_ids)
        return [
            Piece(
                index=c.index,
                token_ids=c.token_ids or (),
                logprobs=() if c.logprobs is None else _of_content(c.logprobs),
                text=c.delta.content or "",
                reasoning=c.delta.reasoning or c.delta.reasoning_content or "",
                tool_calls=tuple(map(_call, c.delta.tool_calls or ())),
                reason=c.finish_reason,
                stop_id=_stop_id(c.stop_reason),
                prompt_tokens=prompt,
            )
            for c in self.choices
        ]


class _TokenChoice(msgspec.Struct):
    index: int = 0
    token_ids: list[int] | None = None
    logprobs: _Content | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class TokenChunk(msgspec.Struct):
    """An event of `/inference/v1/generate`."""

    choices: list[_TokenChoice] = []
    error: Any = None

    def pieces(self) -> list[Piece]:
        """One for each choice in it."""
        return [
            Piece(
                index=c.index,
                token_ids=c.token_ids or (),
                logprobs=() if c.logprobs is None else _of_content(c.logprobs),
                reason=c.finish_reason,
                stop_id=_stop_id(c.stop_reason),
            )
            for c in self.choices
        ]


Chunk = CompletionChunk | ChatChunk | TokenChunk


def read(data: Sequence[bytes], kind: type[Chunk], where: str) -> list[Piece]:
    """The pieces of several events. Raises the error that one of them is."""
    pieces: list[Piece] = []
    for event in data:
        try:
            chunk = msgspec.json.decode(event, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise lost(where, f"an event of the stream cannot be read ({error})") from error
        if chunk.error is not None:
            raise _of_event(chunk.error, event, where)
        pieces += chunk.pieces()
    return pieces


def _of_event(error: Any, event: bytes, where: str) -> ThemisError:
    """An error in the middle of a stream has its status as `code`."""
    code = error.get("code") if isinstance(error, dict) else None
    return failure(code if isinstance(code, int) else 500, event, where)


def _stop_id(reason: int | str | None) -> int | None:
    return reason if isinstance(reason, int) else None


def _call(call: _Call) -> ToolCallDelta:
    function = call.function or _Function()
    return ToolCallDelta(
        index=call.index,
        id=call.id or "",
        name=function.name or "",
        arguments=function.arguments or "",
    )


def _of_completion(given: _Logprobs) -> list[tuple[float, Alternatives]]:
    tops = given.top_logprobs or [None] * len(given.token_logprobs)
    return [
        (value or 0.0, [(_id(name), v) for name, v in (top or {}).items()])
        for value, top in zip(given.token_logprobs, tops, strict=True)
    ]


def _of_content(given: _Content) -> list[tuple[float, Alternatives]]:
    return [
        (entry.logprob, [(_of(top), top.logprob) for top in entry.top_logprobs or ()])
        for entry in given.content or ()
    ]


def _of(entry: _Alternative) -> int:
    return entry.token_id if entry.token_id is not None else _id(entry.token)


def _id(name: str) -> int:
    """`token_id:7` → 7. Raises `ValueError`, which the caller's connection translates."""
    return int(name.removeprefix("token_id:"))
