"""Pieces whose text the server made become events, and a finished answer is checked."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from themis_core.errors import BackendFailed, ThemisError
from themis_core.messages import (
    Delta,
    Done,
    Finished,
    FinishReason,
    GenerateEvent,
    NamedTool,
    Started,
    TokenLogprob,
    Usage,
)
from themis_engine.text import TextStream
from themis_vllm_remote.checks import check_length
from themis_vllm_remote.door import Order, Piece
from themis_vllm_remote.local_texts import best
from themis_vllm_remote.texts import check_end

Check = Callable[[str], str | None]


class _Choice:
    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stream = TextStream(stop)
        self.text: list[str] = []
        self.tokens = 0
        self.calls: dict[int, tuple[str, list[str]]] = {}
        self.ended = False


class ServerAnswer:
    """Pieces with text become events."""

    def __init__(
        self, order: Order, context: int, check: Check | None, known: dict[int, bytes]
    ) -> None:
        self._request = order.request
        self._limit = order.limit
        self._counted = order.ids is not None
        self._context = context
        self._check = check
        self._bytes = known
        stop = order.request.sampling.stop
        self._choices = [_Choice(stop) for _ in range(order.request.sampling.n)]
        self._prompt: int | None = None
        self.done = False

    def take(self, pieces: list[Piece]) -> tuple[list[GenerateEvent], ThemisError | None]:
        """The events of new pieces, and the error that follows them."""
        events: list[GenerateEvent] = []
        try:
            for piece in pieces:
                self._take(piece, events)
        except ThemisError as error:
            return events, error
        if not self.done and all(choice.ended for choice in self._choices):
            self.done = True
            tokens = sum(choice.tokens for choice in self._choices)
            usage = Usage(prompt_tokens=self._prompt or 0, completion_tokens=tokens)
            events.append(Done(usage=usage))
        return events, None

    def _take(self, piece: Piece, events: list[GenerateEvent]) -> None:
        if self._prompt is None:
            self._begin(piece, events)
        choice = self._choices[piece.index]
        if choice.ended:
            return
        choice.tokens += len(piece.token_ids)
        text = choice.stream.push(piece.text.encode())
        matched: str | int | None = choice.stream.matched
        reason = "stop" if matched is not None else piece.reason
        if matched is None and piece.reason is not None:
            check_end(piece, choice.tokens, self._limit, "vllm")
            text += choice.stream.finish()
            matched = choice.stream.matched
            reason = "stop" if matched is not None else piece.reason
            matched = piece.stop_id if matched is None else matched
        if self._check is not None:
            choice.text.append(text)
        for call in piece.tool_calls:
            begun = choice.calls.setdefault(call.index, (call.name, []))
            begun[1].append(call.arguments)
        if text or piece.token_ids or piece.reasoning or piece.tool_calls:
            events.append(
                Delta(
                    index=piece.index,
                    text=text,
                    token_ids=tuple(piece.token_ids),
                    logprobs=self._logprobs(piece),
                    reasoning=piece.reasoning,
                    tool_calls=piece.tool_calls,
                )
            )
        if reason is not None:
            choice.ended = True
            events.append(self._finish(piece.index, choice, reason, matched))

    def _begin(self, piece: Piece, events: list[GenerateEvent]) -> None:
        if piece.prompt_tokens is None:
            raise BackendFailed(
                "The server does not say how long the prompt is.",
                remedy="Use vLLM 0.11 or newer, which knows return_token_ids.",
                plugin="vllm",
            )
        self._prompt = piece.prompt_tokens
        if not self._counted:
            self._limit = check_length(self._prompt, self._request, self._context, "vllm")
        events.append(Started(prompt_tokens=self._prompt))

    def _finish(
        self, index: int, choice: _Choice, reason: str, matched: str | int | None
    ) -> Finished:
        why: FinishReason = "length" if reason == "length" else "stop"
        if choice.calls and why != "length":
            why = "tool_calls"
        if why != "length":
            self._judge(choice, matched)
        return Finished(index=index, reason=why, matched=matched)

    def _judge(self, choice: _Choice, matched: str | int | None) -> None:
        wrong = None if self._check is None else self._check("".join(choice.text))
        if wrong is not None:
            ended = f" after the stop {matched!r}" if matched is not None else ""
            raise _broken(f"The output{ended} does not obey its constraint: {wrong}")
        asked = self._request.tool_choice
        if not self._request.tools or asked == "none":
            return
        named = asked.name if isinstance(asked, NamedTool) else None
        if asked != "auto" and not choice.calls:
            raise _broken("The server was asked to force a tool call, and made none.")
        known = {tool.name for tool in self._request.tools}
        for name, arguments in choice.calls.values():
            if name not in known or named not in (None, name):
                raise _broken(f"The server called the tool {name!r}, which it must not.")
            if asked != "auto" and not _is_object("".join(arguments)):
                raise _broken(f"The forced call of {name!r} has arguments that are no JSON object.")

    def _logprobs(self, piece: Piece) -> tuple[TokenLogprob, ...]:
        asked = self._request.sampling.logprobs
        if asked is None:
            return ()
        return tuple(
            TokenLogprob(
                token_id=token,
                token=self._bytes[token],
                logprob=value,
                top=tuple((i, self._bytes[i], v) for i, v in best(top, asked)),
            )
            for token, (value, top) in zip(piece.token_ids, piece.logprobs, strict=True)
        )


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False


def _broken(why: str) -> BackendFailed:
    return BackendFailed(why, plugin="vllm")
