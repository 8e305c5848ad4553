"""Chat templates: messages to the prompt text that the model was trained on.

Templates come with model files, so they are foreign code: they run in Jinja's sandbox. The
functions and options that they may use are those of Hugging Face's chat templates.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from themis_core.errors import InvalidRequest, ModelFileInvalid
from themis_core.messages import ChatMessage, Tool


class ChatTemplate:
    """A compiled chat template. Raises `ModelFileInvalid` if the source is no valid template."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._tokens = tokens
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFileInvalid(
                f"The model's chat template is broken at line {error.lineno}: {error.message}."
            ) from error
        # Jinja compiles to Python, which has limits and errors of its own.
        except Exception as error:
            raise ModelFileInvalid(
                f"The model's chat template cannot be compiled: {error!r}."
            ) from error

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The prompt for the assistant's next turn. Raises `InvalidRequest` if refused by it."""
        return self._render([_message(message) for message in messages], tools)

    def render_parts(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool],
        foreign: Callable[[str], bool],
    ) -> list[tuple[str, bool]]:
        """The same prompt in parts, each with whether special tokens written in it count.

        They do in what the template wrote, and not in contents that are `foreign`: otherwise
        anybody could end their own turn and begin another speaker's.
        """
        contents: dict[str, str] = {}
        plain = [_message(message) for message in messages]
        for message in plain:
            if foreign(message["content"]):
                # A template passes text of private-use characters through, and nobody can guess it.
                mark = f"\ue000{secrets.token_hex(16)}\ue001"
                contents[mark] = message["content"]
                message["content"] = mark
        text = self._render(plain, tools)
        if not contents:
            return [(text, True)]
        pieces = re.split("(" + "|".join(contents) + ")", text)
        return [(contents.get(piece, piece), piece not in contents) for piece in pieces if piece]

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[Tool]) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=[_tool(tool) for tool in tools] or None,
                add_generation_prompt=True,
                **self._tokens,
            )
        # A template is foreign code; what it raises over these messages is its refusal.
        except Exception as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}.", field="messages"
            ) from error


def _message(message: ChatMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


def _arguments(text: str) -> Any:
    # Templates print arguments with `tojson`; text that is no JSON is shown as it is.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which no model has been trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
