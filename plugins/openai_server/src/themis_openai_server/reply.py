"""Whole responses, in OpenAI's shapes."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from themis_core.messages import Choice, Completion, EmbedResponse, Usage
from themis_openai_server.convert import Job
from themis_openai_server.logprobs import ChatLogprobs, TextLogprobs, TextOffsets, chat_logprobs
from themis_openai_server.ports import ModelRow

_encoder = msgspec.json.Encoder()


class PromptDetails(msgspec.Struct, frozen=True):
    """How much of the prompt came from the cache."""

    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class FunctionReply(msgspec.Struct, frozen=True):
    """Name and arguments (JSON text) of a call."""

    name: str
    arguments: str


class ToolCallReply(msgspec.Struct, frozen=True):
    """A call that the model asks for."""

    id: str
    function: FunctionReply
    type: Literal["function"] = "function"


class MessageReply(msgspec.Struct, frozen=True):
    """The answer of a chat. `reasoning_content` is named as vLLM and DeepSeek name it."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallReply] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True, omit_defaults=False):
    """One answer of a chat."""

    index: int
    message: MessageReply
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET


class TextChoice(msgspec.Struct, frozen=True):
    """One completed text."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str
    token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET


class Reply(msgspec.Struct, frozen=True):
    """A chat completion or a text completion."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[ChatChoice | TextChoice]
    usage: UsageBody


def usage_body(usage: Usage) -> UsageBody:
    """OpenAI's token counts."""
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        PromptDetails(usage.cached_tokens),
    )


def add_usage(parts: Iterable[Usage]) -> Usage:
    """The usage of several prompts together."""
    parts = list(parts)
    return Usage(
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        completion_tokens=sum(part.completion_tokens for part in parts),
        cached_tokens=sum(part.cached_tokens for part in parts),
    )


def chat_reply(job: Job, model: str, created: int, done: Sequence[Completion]) -> bytes:
    """The body of a chat completion."""
    choices = [
        ChatChoice(
            choice.index,
            _message(choice),
            chat_logprobs(choice.logprobs) if job.logprobs else None,
            choice.finish_reason,
            choice.token_ids if job.token_ids else msgspec.UNSET,
        )
        for choice in done[0].choices
    ]
    usage = usage_body(done[0].usage)
    return _encoder.encode(
        Reply(f"chatcmpl-{job.id}", "chat.completion", created, model, choices, usage)
    )


def _message(choice: Choice) -> MessageReply:
    calls = [
        ToolCallReply(call.id, FunctionReply(call.name, call.arguments))
        for call in choice.tool_calls
    ]
    return MessageReply(
        None if calls and not choice.text else choice.text,
        reasoning_content=choice.reasoning or msgspec.UNSET,
        tool_calls=calls or msgspec.UNSET,
    )


def text_reply(job: Job, model: str, created: int, done: Sequence[Completion]) -> bytes:
    """The body of a text completion, with the choices of all prompts."""
    choices = [
        _text_choice(choice, number * job.choices_per_request, job)
        for number, completion in enumerate(done)
        for choice in completion.choices
    ]
    usage = usage_body(add_usage(completion.usage for completion in done))
    return _encoder.encode(
        Reply(f"cmpl-{job.id}", "text_completion", created, model, choices, usage)
    )


def _text_choice(choice: Choice, offset: int, job: Job) -> TextChoice:
    return TextChoice(
        offset + choice.index,
        choice.text,
        TextOffsets().logprobs(choice.logprobs) if job.logprobs else None,
        choice.finish_reason,
        choice.token_ids if job.token_ids else msgspec.UNSET,
    )


def embed_reply(model: str, response: EmbedResponse, as_base64: bool) -> bytes:
    """The body of embeddings. Base64 is of little-endian float32, as OpenAI's is."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(vector) if as_base64 else vector,
        }
        for index, vector in enumerate(response.embeddings)
    ]
    usage = {
        "prompt_tokens": response.usage.prompt_tokens,
        "total_tokens": response.usage.total_tokens,
    }
    return _encoder.encode({"object": "list", "data": data, "model": model, "usage": usage})


def models_reply(rows: Sequence[ModelRow], created: int) -> bytes:
    """The body of the list of models; aliases are entries of their own."""
    data = [model_entry(name, row, created) for row in rows for name in (row.name, *row.aliases)]
    return _encoder.encode({"object": "list", "data": data})


def model_reply(name: str, rows: Sequence[ModelRow], created: int) -> bytes | None:
    """The body of one model, or None if no model or alias has that name."""
    for row in rows:
        if name == row.name or name in row.aliases:
            return _encoder.encode(model_entry(name, row, created))
    return None


def model_entry(name: str, row: ModelRow, created: int) -> dict[str, Any]:
    """One model. `root` is the model behind an alias; `max_model_len` is known once loaded."""
    entry = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "themis",
        "root": row.name,
    }
    if row.info is not None and row.info.context_length:
        entry["max_model_len"] = row.info.context_length
    return entry


def health_reply(rows: Sequence[ModelRow]) -> bytes:
    """The body of /health: it looks at states and touches no model."""
    models = [_health(row) for row in rows]
    failed = any(row.state == "failed" for row in rows)
    return _encoder.encode({"status": "degraded" if failed else "ok", "models": models})


def _health(row: ModelRow) -> dict[str, Any]:
    found: dict[str, Any] = {"name": row.name, "backend": row.backend, "state": row.state}
    if row.worker is not None:
        worker = row.worker
        found["worker"] = {
            "state": worker.state,
            "restarts": worker.restarts,
            "resumed": worker.resumed,
            "poisonous": worker.poisonous,
            # Without logs and request ids: this needs no key.
            "last_exit": worker.exits[-1].reason if worker.exits else None,
        }
    return found


def _base64(vector: Sequence[float]) -> str:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode("ascii")
