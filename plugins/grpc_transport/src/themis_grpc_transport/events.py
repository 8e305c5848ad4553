"""Events and answers, to Protobuf and back."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from themis_core.errors import BackendFailed
from themis_core.messages import (
    Choice,
    Completion,
    Delta,
    Done,
    EmbedResponse,
    Finished,
    FinishReason,
    GenerateEvent,
    Started,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from themis_core.protocol import Matrix
from themis_grpc_transport.fields import number_of, read, write
from themis_grpc_transport.requests import adapter_to_proto, adapters_from_proto
from themis_grpc_transport.v1 import themis_pb2 as pb

_REASONS: dict[int, FinishReason] = {
    pb.FinishReason.Value(f"FINISH_REASON_{reason.upper()}"): reason
    for reason in get_args(FinishReason)
}


def event_to_proto(event: GenerateEvent) -> pb.Event:
    """One event."""
    message = pb.Event()
    match event:
        case Delta():
            delta = write(event, message.delta)
            if not event.token_ids and not event.text:
                delta.SetInParent()
            if event.logprobs:
                delta.logprobs.extend(_logprob_to_proto(entry) for entry in event.logprobs)
            if event.tool_calls:
                delta.tool_calls.extend(write(p, pb.ToolCallDelta()) for p in event.tool_calls)
        case Started():
            started = write(event, message.started)
            started.SetInParent()
            started.adapters.extend(adapter_to_proto(adapter) for adapter in event.adapters)
        case Finished():
            finished = write(event, message.finished)
            finished.reason = _reason_to_proto(event.reason)
            _match(finished, event.matched)
        case Done():
            message.done.usage.SetInParent()
            write(event.usage, message.done.usage)
    return message


def event_from_proto(message: pb.Event) -> GenerateEvent:
    """Raises `BackendFailed` for an event that is not known here."""
    kind = message.WhichOneof("event")
    if kind == "delta":
        delta = message.delta
        return read(
            delta,
            Delta,
            logprobs=tuple(_logprob_from_proto(entry) for entry in delta.logprobs),
            tool_calls=tuple(read(piece, ToolCallDelta) for piece in delta.tool_calls),
        )
    if kind == "started":
        adapters = adapters_from_proto(message.started.adapters)
        return read(message.started, Started, adapters=adapters)
    if kind == "finished":
        finished = message.finished
        reason = _reason_from_proto(finished.reason)
        return read(finished, Finished, reason=reason, matched=_matched(finished))
    if kind == "done":
        return Done(usage=read(message.done.usage, Usage))
    raise BackendFailed("The server sent an event of a kind that is not known here.")


def completion_to_proto(completion: Completion) -> pb.Completion:
    """A whole answer."""
    message = write(completion, pb.Completion())
    write(completion.usage, message.usage)
    for choice in completion.choices:
        part = write(choice, message.choices.add())
        part.logprobs.extend(_logprob_to_proto(entry) for entry in choice.logprobs)
        part.tool_calls.extend(write(call, pb.ToolCall()) for call in choice.tool_calls)
        part.finish_reason = _reason_to_proto(choice.finish_reason)
        _match(part, choice.matched)
    return message


def completion_from_proto(message: pb.Completion) -> Completion:
    """A whole answer. Raises `BackendFailed` for a reason to finish that is not known here."""
    choices = tuple(
        read(
            part,
            Choice,
            logprobs=tuple(_logprob_from_proto(entry) for entry in part.logprobs),
            tool_calls=tuple(read(call, ToolCall) for call in part.tool_calls),
            finish_reason=_reason_from_proto(part.finish_reason),
            matched=_matched(part),
        )
        for part in message.choices
    )
    return read(message, Completion, choices=choices, usage=read(message.usage, Usage))


def embeddings_to_proto(response: EmbedResponse) -> pb.EmbedResponse:
    """Vectors as 32-bit floats. Raises `BackendFailed` if their lengths differ."""
    vectors: Sequence[Sequence[float]] = response.embeddings
    data: bytes
    if isinstance(vectors, Matrix) and vectors.item == "f" and sys.byteorder == "little":
        columns, data = vectors.columns, bytes(vectors.memory)
    else:
        columns = len(vectors[0]) if vectors else 0
        if any(len(vector) != columns for vector in vectors):
            raise BackendFailed("The backend gave vectors of different lengths.")
        data = _floats(value for vector in vectors for value in vector)
    message = pb.EmbedResponse(rows=len(vectors), columns=columns, data=data)
    write(response.usage, message.usage)
    return message


def embeddings_from_proto(message: pb.EmbedResponse) -> EmbedResponse:
    """The vectors as a `Matrix`. Raises `BackendFailed` if the sizes do not agree."""
    rows, columns, data = message.rows, message.columns, message.data
    if rows < 0 or columns < 1 or rows * columns * 4 != len(data):
        raise BackendFailed(f"{len(data)} bytes came as {rows} vectors of {columns} numbers.")
    if sys.byteorder != "little":
        swapped = array("f", data)
        swapped.byteswap()
        data = swapped.tobytes()
    matrix: Any = Matrix(memoryview(data), columns)
    return EmbedResponse(embeddings=matrix, usage=read(message.usage, Usage))


def _floats(values: Iterable[float]) -> bytes:
    flat = array("f", values)
    if sys.byteorder != "little":
        flat.byteswap()
    return flat.tobytes()


def _logprob_to_proto(entry: TokenLogprob) -> pb.TokenLogprob:
    message = pb.TokenLogprob(token_id=entry.token_id, token=entry.token, logprob=entry.logprob)
    for token_id, token, logprob in entry.top:
        message.top.add(token_id=token_id, token=token, logprob=logprob)
    return message


def _logprob_from_proto(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token_id=message.token_id,
        token=message.token,
        logprob=message.logprob,
        top=tuple((other.token_id, other.token, other.logprob) for other in message.top),
    )


def _match(message: pb.Finished | pb.Choice, matched: str | int | None) -> None:
    if isinstance(matched, str):
        message.stop = matched
    elif matched is not None:
        message.stop_token_id = matched


def _matched(message: pb.Finished | pb.Choice) -> str | int | None:
    if message.HasField("stop"):
        return message.stop
    return message.stop_token_id if message.HasField("stop_token_id") else None


def _reason_to_proto(reason: FinishReason) -> pb.FinishReason:
    found: pb.FinishReason = number_of(pb.FinishReason, f"FINISH_REASON_{reason.upper()}")
    return found


def _reason_from_proto(number: int) -> FinishReason:
    if number not in _REASONS:
        raise BackendFailed(f"The server finished for reason {number}, which is not known here.")
    return _REASONS[number]
