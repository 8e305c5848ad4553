"""Chat messages and tools, as the chat templates of models know them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model asked for. `arguments` is the JSON text exactly as generated."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. `tool_call_id` belongs to role `tool`; `tool_calls` to role `assistant`.

    `reasoning` is what an assistant thought before `content`, for templates that show it.
    """

    role: Role
    content: str = ""
    name: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    """The choice of one tool by name."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | NamedTool


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call. `parameters` is a JSON Schema object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
