"""From the messages and tools of a chat body to the core's."""

from __future__ import annotations

from typing import Any

from themis_core.errors import InvalidRequest
from themis_core.messages import ChatMessage, NamedTool, Tool, ToolCall, ToolChoice
from themis_openai_server.body import ContentPart, MessageBody, ToolBody, ToolCallBody
from themis_openai_server.policy import check_message, refused

_NOT_OF_TEXT = ("image_url", "input_audio", "file", "refusal", "prompt_cache_breakpoint")


def messages_of(bodies: list[MessageBody]) -> tuple[ChatMessage, ...]:
    """Raises `InvalidRequest` and `UnsupportedField`, naming the message at fault."""
    return tuple(_message(body, f"messages[{i}]") for i, body in enumerate(bodies))


def tools_of(
    bodies: list[ToolBody] | None, choice: str | dict[str, Any] | None
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools (none if the choice is "none") and the choice. Raises `InvalidRequest`."""
    chosen: ToolChoice
    match choice:
        case None:
            chosen = "auto"
        case "auto" | "none" | "required":
            chosen = choice
        case _:
            chosen = _named(choice)
    if choice not in (None, "none") and not bodies:
        raise InvalidRequest("tool_choice needs tools.", field="tool_choice")
    if chosen == "none":
        return (), "auto"
    return tuple(_tool(body) for body in bodies or ()), chosen


def _named(choice: str | dict[str, Any]) -> NamedTool:
    match choice:
        case {"type": "function", "function": {"name": str(name)}} if len(choice) == 2:
            return NamedTool(name=name)
    raise InvalidRequest(
        f"tool_choice is {choice!r}.",
        field="tool_choice",
        remedy='Use "auto", "none", "required", or {"type": "function", "function": {"name": …}}.',
    )


def _tool(body: ToolBody) -> Tool:
    function = body.function
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=function.parameters or {},
    )


def _message(body: MessageBody, where: str) -> ChatMessage:
    check_message(body, where)
    if body.tool_calls and body.role != "assistant":
        raise InvalidRequest(f"{where}: only role assistant has tool_calls.", field=where)
    if (body.tool_call_id is not None) != (body.role == "tool"):
        raise InvalidRequest(
            f"{where}: tool_call_id belongs to role tool, and only there.",
            field=f"{where}.tool_call_id",
        )
    if body.reasoning_content and body.role != "assistant":
        raise InvalidRequest(
            f"{where}: only role assistant has reasoning_content.",
            field=f"{where}.reasoning_content",
        )
    if body.content is None and not body.tool_calls and not body.reasoning_content:
        raise InvalidRequest(f"{where}.content is missing.", field=f"{where}.content")
    return ChatMessage(
        role="system" if body.role == "developer" else body.role,
        content=_text(body.content, f"{where}.content"),
        name=body.name,
        reasoning=body.reasoning_content or "",
        tool_calls=tuple(map(_tool_call, body.tool_calls or ())),
        tool_call_id=body.tool_call_id,
    )


def _tool_call(body: ToolCallBody) -> ToolCall:
    return ToolCall(id=body.id, name=body.function.name, arguments=body.function.arguments)


def _text(content: str | list[ContentPart] | None, where: str) -> str:
    """Parts are joined by line breaks, as vLLM and llama.cpp join them."""
    if not isinstance(content, list):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        field = f"{where}[{i}]"
        if part.type != "text":
            raise refused(f"{field}.type", f"{part.type!r} is not text.", "Send text parts only.")
        for name in _NOT_OF_TEXT:
            if getattr(part, name) is not None:
                raise refused(f"{field}.{name}", "a text part has only text.")
        if part.text is None:
            raise InvalidRequest(f"{field}.text is missing.", field=f"{field}.text")
        texts.append(part.text)
    return "\n".join(texts)
