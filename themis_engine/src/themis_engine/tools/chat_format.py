"""What one model's chat format can do, besides turns of text."""

from __future__ import annotations

import re

from themis_core.errors import UnsupportedField
from themis_core.messages import Constraint, GenerateRequest, NamedTool, Tool
from themis_engine.chat import ChatTemplate
from themis_engine.runner import Tokenizer
from themis_engine.tools.grammar import CallGrammar
from themis_engine.tools.parser import OutputParser
from themis_engine.tools.style import Style, find_style

_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_TAIL = 64


class ChatFormat:
    """Made once for each model, by `of`. Safe to use from several threads at once."""

    def __init__(
        self,
        template: ChatTemplate | None,
        style: Style | None,
        thinking: tuple[str, str] | None,
        specials: dict[str, int],
    ) -> None:
        self._template = template
        self._style = style
        self._thinking = thinking
        self._grammar = None if style is None else CallGrammar(style, thinking, specials)
        self._specials = specials

    @classmethod
    def of(cls, template_source: str | None, tokenizer: Tokenizer) -> ChatFormat:
        """Find the format by letting the template write a call.

        Raises `ModelFileInvalid` if the template is broken.
        """
        specials = dict(tokenizer.special_tokens)
        if template_source is None:
            return cls(None, None, None, specials)
        template = ChatTemplate(template_source, tokenizer.template_tokens)
        thinking = next(
            (tags for tags in _TAGS if all(tag in template_source for tag in tags)), None
        )
        return cls(template, find_style(template), thinking, specials)

    @property
    def tools(self) -> bool:
        """True if the model's form of tool calls is known."""
        return self._style is not None

    @property
    def reasoning(self) -> bool:
        """True if the model reasons between tags before it answers."""
        return self._thinking is not None

    def constraint(
        self, request: GenerateRequest, prompt_text_tail: str | None = None
    ) -> Constraint | None:
        """A grammar that makes the output obey `tool_choice`; None where nothing is to be forced.

        "required" and a named tool force calls; with "auto", text is free, and behind the marker of
        a call stands a right one. None with "auto" where calls have no marker (Llama 3), and where
        the request has a constraint of its own. The prompt is rendered again where it is needed and
        its tail is not given. Raises `UnsupportedField` for tools that the model has no known form
        for, and `InvalidRequest` for tools whose arguments are no object.
        """
        if not request.tools or request.tool_choice == "none":
            return None
        if self._grammar is None:
            raise UnsupportedField(
                "The form in which this model calls tools is unknown.",
                field="tools",
                remedy="Leave out tools, or use a model whose chat template writes tool calls.",
            )
        tools, parallel = _offered(request), request.parallel_tool_calls
        opened = False
        if self._thinking is not None:
            tail = self._tail(request) if prompt_text_tail is None else prompt_text_tail
            opened = self._opens(tail)
        if request.tool_choice != "auto":
            source: str | None = self._grammar.forced(tools, parallel=parallel, opened=opened)
        elif request.constraint is not None:
            source = None
        else:
            source = self._grammar.free(tools, parallel=parallel, opened=opened)
        return None if source is None else Constraint(kind="lark", value=source)

    def parser(self, request: GenerateRequest, prompt_text_tail: str) -> OutputParser:
        """A reader for one choice. `prompt_text_tail` is the end of what the template wrote.

        What a request's own constraint governs is text as a whole, and so is what follows a prompt
        that is no chat.
        """
        if not request.messages or request.constraint is not None:
            return OutputParser(None)
        calls = bool(request.tools) and request.tool_choice != "none"
        style = self._style if calls else None
        texts = (*(() if style is None else style.markers), *(self._thinking or ()))
        return OutputParser(
            style,
            [tool.name for tool in request.tools],
            thinking=self._thinking,
            opened=self._thinking is not None and self._opens(prompt_text_tail),
            limit=None if request.parallel_tool_calls else 1,
            markers={self._specials[text]: text for text in texts if text in self._specials},
        )

    def _opens(self, tail: str) -> bool:
        assert self._thinking is not None
        return re.search(re.escape(self._thinking[0]) + r"\s*\Z", tail) is not None

    def _tail(self, request: GenerateRequest) -> str:
        assert self._template is not None
        text = self._template.render(request.messages, request.tools, request.template_options)
        return text[-_TAIL:]


def _offered(request: GenerateRequest) -> list[Tool]:
    choice = request.tool_choice
    wanted = choice.name if isinstance(choice, NamedTool) else None
    return [tool for tool in request.tools if wanted in (None, tool.name)]
