"""Events as server-sent events, in OpenAI's shapes.

Nearly all of a chunk is the same from token to token, so it is built once for each choice; a token
costs the encoding of its text and one concatenation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import msgspec

from themis_core.messages import (
    Delta,
    Done,
    Finished,
    GenerateEvent,
    TokenLogprob,
    ToolCallDelta,
)
from themis_openai_server.convert import Job
from themis_openai_server.exchange import STREAM_END
from themis_openai_server.logprobs import TextOffsets, chat_logprobs
from themis_openai_server.reply import usage_body

_encode = msgspec.json.Encoder().encode


class Chunks(ABC):
    """Turns the events of one job into the bytes of its stream."""

    prefix = ""
    object = ""

    def __init__(self, job: Job, model: str, created: int) -> None:
        head = {
            "id": f"{self.prefix}-{job.id}",
            "object": self.object,
            "created": created,
            "model": model,
        }
        self._head = b"data: " + _encode(head)[:-1]
        # With include_usage, OpenAI puts "usage": null into every chunk but the last.
        self._tail = b',"usage":null}\n\n' if job.include_usage else b"}\n\n"
        self._job = job
        self._count = len(job.requests) * job.choices_per_request
        self._around: dict[int, tuple[bytes, bytes]] = {}
        self._plain = not (job.logprobs or job.token_ids)

    def encode(self, event: GenerateEvent) -> bytes:
        """The bytes of one event; none for events that clients do not see."""
        if isinstance(event, Delta):
            if self._plain and not (event.reasoning or event.tool_calls):
                return self._text(event.index, event.text) if event.text else b""
            return self._detailed(event)
        if isinstance(event, Finished):
            return self._choice(event.index, self._last(), None, event.reason)
        if isinstance(event, Done):
            return self._usage(event) + STREAM_END
        return b""

    def opening(self) -> bytes:
        """What precedes the first event."""
        return b""

    @abstractmethod
    def _content(self, text: bytes) -> bytes:
        """The member of the choice that carries this text (already encoded)."""

    def _parts(self, delta: Delta) -> bytes:
        """The member of the choice that carries all that a delta has."""
        return self._content(_encode(delta.text))

    @abstractmethod
    def _last(self) -> bytes:
        """The same member in the chunk that carries the finish reason."""

    @abstractmethod
    def _logprobs(self, index: int, entries: tuple[TokenLogprob, ...]) -> Any:
        """The log-probabilities of new tokens of a choice."""

    def _text(self, index: int, text: str) -> bytes:
        around = self._around.get(index)
        if around is None:
            before, _, after = self._choice(index, self._content(b"\0"), None, None).partition(
                b"\0"
            )
            around = self._around[index] = before, after
        return around[0] + _encode(text) + around[1]

    def _detailed(self, delta: Delta) -> bytes:
        if not (delta.text or delta.token_ids or delta.reasoning or delta.tool_calls):
            return b""
        logprobs = self._logprobs(delta.index, delta.logprobs) if self._job.logprobs else None
        token_ids = delta.token_ids if self._job.token_ids else None
        return self._choice(delta.index, self._parts(delta), logprobs, None, token_ids)

    def _choice(
        self,
        index: int,
        content: bytes,
        logprobs: Any,
        reason: str | None,
        token_ids: tuple[int, ...] | None = None,
    ) -> bytes:
        ids = b"" if token_ids is None else b',"token_ids":' + _encode(token_ids)
        return b'%b,"choices":[{"index":%d,%b,"logprobs":%b,"finish_reason":%b%b}]%b' % (
            self._head,
            index,
            content,
            _encode(logprobs),
            _encode(reason),
            ids,
            self._tail,
        )

    def _usage(self, done: Done) -> bytes:
        if not self._job.include_usage:
            return b""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._head, _encode(usage_body(done.usage)))


class ChatChunks(Chunks):
    """The stream of a chat."""

    prefix = "chatcmpl"
    object = "chat.completion.chunk"

    def opening(self) -> bytes:
        """For each choice a chunk with the role."""
        # What only calls tools has no content, which must not be known later than this.
        content = b"null" if self._job.requests[0].tools else b'""'
        role = b'"delta":{"role":"assistant","content":%b}' % content
        return b"".join(self._choice(index, role, None, None) for index in range(self._count))

    def _content(self, text: bytes) -> bytes:
        return b'"delta":{"content":' + text + b"}"

    def _parts(self, delta: Delta) -> bytes:
        if not (delta.reasoning or delta.tool_calls):
            return super()._parts(delta)
        members: dict[str, Any] = {}
        if delta.reasoning:
            members["reasoning_content"] = delta.reasoning
        if delta.text:
            members["content"] = delta.text
        if delta.tool_calls:
            members["tool_calls"] = list(map(_tool_call, delta.tool_calls))
        return b'"delta":' + _encode(members)

    def _last(self) -> bytes:
        return b'"delta":{}'

    def _logprobs(self, index: int, entries: tuple[TokenLogprob, ...]) -> Any:
        return chat_logprobs(entries)


class TextChunks(Chunks):
    """The stream of completions."""

    prefix = "cmpl"
    object = "text_completion"

    def __init__(self, job: Job, model: str, created: int) -> None:
        super().__init__(job, model, created)
        self._offsets: dict[int, TextOffsets] = {}

    def _content(self, text: bytes) -> bytes:
        return b'"text":' + text

    def _last(self) -> bytes:
        return b'"text":""'

    def _logprobs(self, index: int, entries: tuple[TokenLogprob, ...]) -> Any:
        return self._offsets.setdefault(index, TextOffsets()).logprobs(entries)


def _tool_call(delta: ToolCallDelta) -> dict[str, Any]:
    """A piece of a call: the first has its id and name."""
    if not delta.name:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }
