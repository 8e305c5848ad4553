"""Gathering the events of a request into one `Completion`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from themis_core.messages import (
    Choice,
    Completion,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    TokenLogprob,
    ToolCall,
    Usage,
)


class _Partial:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.reasoning: list[str] = []
        self.tool_calls: dict[int, ToolCall] = {}

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            call = self.tool_calls.get(piece.index)
            self.tool_calls[piece.index] = ToolCall(
                id=piece.id or (call.id if call else ""),
                name=piece.name or (call.name if call else ""),
                arguments=(call.arguments if call else "") + piece.arguments,
            )


class Gathering:
    """Puts the events of one request together as they come."""

    def __init__(self) -> None:
        self._partial: dict[int, _Partial] = {}
        self._choices: list[Choice] = []
        self._usage = Usage()

    def add(self, event: GenerateEvent) -> None:
        """Take the next event."""
        match event:
            case Delta(index=index):
                self._partial.setdefault(index, _Partial()).add(event)
            case Finished(index=index):
                part = self._partial.setdefault(index, _Partial())
                self._choices.append(_choice(event, part))
            case Done():
                self._usage = event.usage

    def completion(self, request_id: str, model: str) -> Completion:
        """What has come, the finished choices by index."""
        choices = tuple(sorted(self._choices, key=lambda choice: choice.index))
        return Completion(request_id=request_id, model=model, choices=choices, usage=self._usage)


async def gather(events: AsyncIterator[GenerateEvent], request_id: str, model: str) -> Completion:
    """Read all events. Raises what the iterator raises."""
    gathering = Gathering()
    async for event in events:
        gathering.add(event)
    return gathering.completion(request_id, model)


def _choice(finished: Finished, part: _Partial) -> Choice:
    return Choice(
        index=finished.index,
        text="".join(part.text),
        token_ids=tuple(part.token_ids),
        logprobs=tuple(part.logprobs),
        reasoning="".join(part.reasoning),
        tool_calls=tuple(call for _, call in sorted(part.tool_calls.items())),
        finish_reason=finished.reason,
        matched=finished.matched,
    )
