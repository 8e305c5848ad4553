"""The forms in which models write tool calls, found by letting the template write one.

- `tagged`: `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes, Qwen 2.5 and 3, Granite 4)
- `bare`: `{"name": …, "parameters": …}`, nothing before it (Llama 3.1 to 3.3)
- `list`: `[TOOL_CALLS][{"name": …, "arguments": …}]` (Mistral, up to Nemo)
- `named`: `[TOOL_CALLS]name[ARGS]{…}`, some with `[CALL_ID]id` between (Mistral, since Small 3.2)

Anything else is unknown, and such a model gets no tools.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from themis_core.errors import InvalidRequest
from themis_core.messages import ChatMessage, Tool, ToolCall
from themis_engine.chat import ChatTemplate

Kind = Literal["tagged", "bare", "list", "named"]

TAG = "<tool_call>"
END_TAG = "</tool_call>"
MISTRAL = "[TOOL_CALLS]"
PYTHON = "<|python_tag|>"
CALL_ID = "[CALL_ID]"
ARGS = "[ARGS]"


@dataclass(frozen=True, slots=True)
class Style:
    """What the template writes around names and arguments, to the letter.

    A call is `begin`, name, `middle`, arguments, `end`; several stand between `first` and `last`,
    separated by `between` (None: the template takes one call only). With `ids`, `[CALL_ID]` and an
    id follow the name.
    """

    kind: Kind
    begin: str
    middle: str
    end: str
    first: str = ""
    last: str = ""
    between: str | None = None
    ids: bool = False

    @property
    def marker(self) -> str:
        """What calls begin with; nothing for `bare`."""
        return {"tagged": TAG, "bare": "", "list": MISTRAL, "named": MISTRAL}[self.kind]

    @property
    def markers(self) -> tuple[str, ...]:
        """All that can stand in or around calls and be a special token."""
        return {
            "tagged": (TAG, END_TAG),
            "bare": (PYTHON,),
            "list": (MISTRAL,),
            "named": (MISTRAL, CALL_ID, ARGS),
        }[self.kind]


_NAME, _OTHER, _ID = "probe_name", "other_name", "a1b2c3d4e"
_ARGUMENTS = '{"probe_key": "probe_value"}'
_TOOLS = tuple(
    Tool(
        name=name,
        description="A probe.",
        parameters={
            "type": "object",
            "properties": {"probe_key": {"type": "string", "description": "A key."}},
        },
    )
    for name in (_NAME, _OTHER)
)
_PARTS = {"@name": _NAME, "@id": _ID, "@arguments": re.escape(_ARGUMENTS)}
_PATTERNS: dict[Kind, str] = {
    "tagged": r'(?P<begin><tool_call>\s*\{\s*"name":\s*")@name(?P<middle>",\s*"arguments":\s*)'
    r"@arguments(?P<end>\s*\}\s*</tool_call>)",
    "bare": r"<\|end_header_id\|>\n\n(?:<\|python_tag\|>)?"
    r'(?P<begin>\{"name":\s*")@name(?P<middle>",\s*"parameters":\s*)@arguments(?P<end>\})',
    "list": r'(?P<first>\[TOOL_CALLS\]\s*\[)(?P<begin>\{"name":\s*")@name'
    r'(?P<middle>",\s*"arguments":\s*)@arguments(?:,\s*"id":\s*"@id")?(?P<end>\})(?P<last>\s*\])',
    "named": r"(?P<begin>\[TOOL_CALLS\]\s*)@name(?P<ids>\[CALL_ID\]@id)?(?P<middle>\[ARGS\]\s*)"
    r"@arguments(?P<end>)",
}


def find_style(template: ChatTemplate) -> Style | None:
    """The form that this template writes calls in; None if it is unknown, or there is none."""
    one = _written(template, _NAME)
    if one is None or "probe_key" not in one.partition(_ARGUMENTS)[0]:
        return None  # It does not show calls, or not the tools.
    for kind, pattern in _PATTERNS.items():
        for part, text in _PARTS.items():
            pattern = pattern.replace(part, text)
        found = re.search(pattern, one)
        if found is not None:
            groups = found.groupdict()
            return Style(
                kind,
                groups["begin"],
                groups["middle"],
                groups["end"],
                groups.get("first", ""),
                groups.get("last", ""),
                _between(template, groups["end"], groups["begin"]),
                ids=bool(groups.get("ids")),
            )
    return None


def json_name(name: str) -> str:
    """A tool's name as it stands within a JSON string."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _written(template: ChatTemplate, *names: str) -> str | None:
    """A question answered by calls, as the template writes it."""
    calls = tuple(ToolCall(id=_ID, name=name, arguments=_ARGUMENTS) for name in names)
    messages = [
        ChatMessage(role="user", content="a"),
        ChatMessage(role="assistant", tool_calls=calls),
    ]
    try:
        return template.render(messages, _TOOLS, generation_prompt=False)
    except InvalidRequest:
        return None


def _between(template: ChatTemplate, end: str, begin: str) -> str | None:
    two = _written(template, _NAME, _OTHER)
    if two is None:
        return None
    behind = two.rpartition(begin + _OTHER)[0].rpartition(_ARGUMENTS)[2]
    # An id may stand behind the arguments; what matters is behind the end.
    _, found, between = behind.rpartition(end) if end else ("", "x", behind)
    return between if found else None
