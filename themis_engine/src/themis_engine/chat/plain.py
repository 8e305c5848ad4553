"""Messages and tools as the plain data that chat templates work on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from themis_core.messages import ChatMessage, Tool, ToolCall

Disguise = Callable[[str], str]
"""Applied to each text that comes from outside."""


def message_data(message: ChatMessage, disguise: Disguise, *, null_content: bool) -> dict[str, Any]:
    """A message as OpenAI's API writes it.

    Reasoning is `reasoning_content`, and `thinking` too, as `transformers` has it. With
    `null_content`, an assistant who only calls tools has the content None.
    """
    plain: dict[str, Any] = {}
    if message.reasoning:
        plain["thinking"] = disguise(message.reasoning)
    plain["role"] = disguise(message.role)
    silent = null_content and message.tool_calls and not message.content
    plain["content"] = None if silent else disguise(message.content)
    if message.name is not None:
        plain["name"] = disguise(message.name)
    if message.tool_call_id is not None:
        plain["tool_call_id"] = disguise(message.tool_call_id)
    if message.tool_calls:
        plain["tool_calls"] = [_call(call, disguise) for call in message.tool_calls]
    if message.reasoning:
        plain["reasoning_content"] = plain["thinking"]
    return plain


def tool_data(tool: Tool, disguise: Disguise) -> dict[str, Any]:
    """A tool as OpenAI's API writes it."""
    function = {
        "name": disguise(tool.name),
        "description": disguise(tool.description),
        "parameters": disguised(tool.parameters, disguise),
    }
    return {"type": "function", "function": function}


def disguised(value: Any, disguise: Disguise) -> Any:
    """JSON data with all its texts, keys included, passed through `disguise`."""
    if isinstance(value, str):
        return disguise(value)
    if isinstance(value, Mapping):
        return {disguised(key, disguise): disguised(item, disguise) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [disguised(item, disguise) for item in value]
    return value


def _call(call: ToolCall, disguise: Disguise) -> dict[str, Any]:
    arguments = disguised(_arguments(call.arguments), disguise)
    return {
        "id": disguise(call.id),
        "type": "function",
        "function": {"name": disguise(call.name), "arguments": arguments},
    }


def _arguments(text: str) -> Any:
    """Templates take arguments as an object; text that is no JSON object is shown as it is."""
    try:
        value = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
