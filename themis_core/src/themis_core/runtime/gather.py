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
    Usage,
)


class _Partial:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []


async def gather(events: AsyncIterator[GenerateEvent], request_id: str, model: str) -> Completion:
    """Read all events. Raises what the iterator raises."""
    partial: dict[int, _Partial] = {}
    choices: list[Choice] = []
    usage = Usage()
    async for event in events:
        match event:
            case Delta(index=index):
                part = partial.setdefault(index, _Partial())
                part.text.append(event.text)
                part.token_ids += event.token_ids
                part.logprobs += event.logprobs
            case Finished(index=index):
                part = partial.setdefault(index, _Partial())
                choices.append(_choice(event, part))
            case Done():
                usage = event.usage
    choices.sort(key=lambda choice: choice.index)
    return Completion(request_id=request_id, model=model, choices=tuple(choices), usage=usage)


def _choice(finished: Finished, part: _Partial) -> Choice:
    return Choice(
        index=finished.index,
        text="".join(part.text),
        token_ids=tuple(part.token_ids),
        logprobs=tuple(part.logprobs),
        finish_reason=finished.reason,
        matched=finished.matched,
    )
