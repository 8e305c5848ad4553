"""A compiled chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta

from themis_core.errors import InvalidRequest, ModelFileInvalid
from themis_core.messages import ChatMessage, Tool, ToolCall
from themis_core.suggest import did_you_mean
from themis_engine.chat.environment import environment
from themis_engine.chat.guard import Guard, Part
from themis_engine.chat.plain import Disguise, disguised, message_data, tool_data

_RESERVED = ("messages", "tools", "add_generation_prompt")
_CALLING = (
    ChatMessage(role="user", content="a"),
    ChatMessage(role="assistant", tool_calls=(ToolCall(id="a1b2c3d4e", name="f", arguments="{}"),)),
)


class ChatTemplate:
    """Renders prompts as `transformers` does. `variables` are the names that it looks up.

    `tokens` are the texts that templates know by name, `specials` those of all special tokens.
    Raises `ModelFileInvalid` if the source is no valid template.
    """

    def __init__(
        self, source: str, tokens: Mapping[str, str], specials: Iterable[str] = ()
    ) -> None:
        self._tokens = dict(tokens)
        self._guard = Guard(specials)
        self._null_content = False
        self._reasons = "</think>" in source or "[/THINK]" in source
        jinja = environment()
        try:
            self._template = jinja.from_string(source)
            names = jinja2.meta.find_undeclared_variables(jinja.parse(source))
            self.variables = frozenset(names.difference(jinja.globals))
        except jinja2.TemplateSyntaxError as error:
            raise ModelFileInvalid(
                f"The model's chat template is broken at line {error.lineno}: {error.message}."
            ) from error
        # Jinja compiles to Python, which has limits and errors of its own.
        except Exception as error:
            raise ModelFileInvalid(
                f"The model's chat template cannot be compiled: {error!r}."
            ) from error
        self._null_content = self._takes_null()

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
        *,
        generation_prompt: bool = True,
    ) -> str:
        """The prompt for the assistant's next turn. Raises `InvalidRequest` if refused by it."""
        return self._render(messages, tools, options or {}, str, generation_prompt)

    def render_parts(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[Part]:
        """The same prompt in parts, each with whether special tokens written in it count.

        They do in what the template wrote, and not in what comes from messages, tools and options.
        """
        given = options or {}

        def render(disguise: Disguise) -> str:
            return self._render(messages, tools, given, disguise, True)

        return self._guard.parts(render(str), render)

    def _render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool],
        options: Mapping[str, Any],
        disguise: Disguise,
        generation_prompt: bool,
    ) -> str:
        options = self._known(options)
        try:
            variables = {
                "documents": None,
                **self._tokens,
                **{name: disguised(value, disguise) for name, value in options.items()},
                "messages": [
                    message_data(message, disguise, null_content=self._null_content)
                    for message in messages
                ],
                "tools": [tool_data(tool, disguise) for tool in tools] or None,
                "add_generation_prompt": generation_prompt,
            }
            return self._template.render(variables)
        # A template is foreign code; what it raises over these messages is its refusal.
        except Exception as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}.", field="messages"
            ) from error

    def _known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options as the template's variables. Raises `InvalidRequest` for others.

        `reasoning_effort` "none" is also said by `enable_thinking` or `thinking`, and needs no
        saying where the template has no reasoning.
        """
        known = dict(options)
        if "reasoning_effort" in known and "reasoning_effort" not in self.variables:
            switch = next((n for n in ("enable_thinking", "thinking") if n in self.variables), None)
            if known["reasoning_effort"] == "none" and (switch or not self._reasons):
                del known["reasoning_effort"]
                if switch is not None:
                    known.setdefault(switch, False)
        for name in known:
            if name in _RESERVED or name not in self.variables:
                raise InvalidRequest(
                    f"The model's chat template has no option {name!r}.",
                    field="template_options",
                    remedy=did_you_mean(name, self.variables.difference(_RESERVED, self._tokens))
                    or "Leave it out.",
                )
        return known

    def _takes_null(self) -> bool:
        """Whether a turn that only calls tools has the content None, and not an empty text.

        `ChatMessage` knows no difference, and templates do: some write an empty answer behind the
        calls for the one, some fail over the other.
        """
        results = []
        for self._null_content in (False, True):
            try:
                results.append(self._render(_CALLING, (), {}, str, False))
            except InvalidRequest:
                results.append("")
        return bool(results[1]) and results[0] != results[1]
