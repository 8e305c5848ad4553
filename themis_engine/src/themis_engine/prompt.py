"""From what a request says to the token ids that the model sees."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from themis_core.errors import InvalidRequest, UnsupportedField
from themis_core.messages import ChatMessage, GenerateRequest, Tool
from themis_engine.chat import ChatTemplate
from themis_engine.runner import ModelRunner

# Longer texts are rendered and tokenised in a thread, so that they do not hold up the event loop.
_INLINE_CHARACTERS = 8192
_TAIL = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the end of the text that a template made (empty without a template)."""

    ids: list[int]
    tail: str = ""


class PromptEncoder:
    """Template and tokenizer of one model. Raises `ModelFileInvalid` for a broken template."""

    def __init__(self, runner: ModelRunner) -> None:
        self._tokenizer = tokenizer = runner.tokenizer
        self._vocab_size = runner.info.vocab_size
        source = tokenizer.chat_template
        self._template = (
            None
            if source is None
            else ChatTemplate(source, tokenizer.template_tokens, tokenizer.special_tokens)
        )

    @property
    def chat(self) -> bool:
        """True if messages can be taken."""
        return self._template is not None

    async def request(self, request: GenerateRequest) -> list[int]:
        """The prompt of a request. Raises `InvalidRequest`, or `UnsupportedField` for messages."""
        return (await self.prepare(request)).ids

    async def prepare(self, request: GenerateRequest) -> Prompt:
        """The same, with the end of its text, from which `ChatFormat.parser` knows where it is.

        With `truncate_prompt_tokens` these are the last tokens, whatever stands before them, the
        model's start token included.
        """
        if isinstance(request.prompt, tuple):
            self.check_ids("prompt", request.prompt)
            prompt = Prompt(list(request.prompt))
        elif request.prompt is not None:
            prompt = await self._prompt(request.prompt, (), {})
        else:
            tools = () if request.tool_choice == "none" else request.tools
            prompt = await self._prompt(request.messages, tools, request.template_options)
        if not prompt.ids:
            raise InvalidRequest("The prompt has no tokens.", field="prompt")
        if request.truncate_prompt_tokens is not None:
            return Prompt(prompt.ids[-request.truncate_prompt_tokens :], prompt.tail)
        return prompt

    async def encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a text, or of messages through the template."""
        return (await self._prompt(prompt, tools, options or {})).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids. Raises `InvalidRequest` for ids that do not exist."""
        self.check_ids("token_ids", token_ids)
        pieces = map(self._tokenizer.token_bytes, token_ids)
        return b"".join(pieces).decode("utf-8", "replace")

    def check_ids(self, field: str, ids: Iterable[int]) -> None:
        """Raise `InvalidRequest`, naming the field, if an id is not in the vocabulary."""
        wrong = next((i for i in ids if not 0 <= i < self._vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"{field} has token id {wrong}, but the model's ids go from 0 to "
                f"{self._vocab_size - 1}.",
                field=field,
            )

    async def _prompt(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool],
        options: Mapping[str, Any],
    ) -> Prompt:
        try:
            if _is_short(prompt, tools, options):
                return self._encode(prompt, tools, options)
            return await asyncio.to_thread(self._encode, prompt, tools, options)
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"The prompt is no valid text: {error.reason} at character {error.start}.",
                field="prompt",
            ) from error

    def _encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool],
        options: Mapping[str, Any],
    ) -> Prompt:
        if isinstance(prompt, str):
            return Prompt(self._tokenizer.encode(prompt, parse_special=False))
        if self._template is None:
            raise UnsupportedField(
                "This model has no chat template.",
                field="messages",
                remedy="Give the prompt as text instead.",
            )
        parts = self._template.render_parts(prompt, tools, options)
        ids: list[int] = []
        for i, (text, special) in enumerate(parts):
            more = self._tokenizer.encode(text, parse_special=special)
            ids += more if i == 0 else self._without_start(more, text, special)
        return Prompt(ids, "".join(text for text, _ in parts)[-_TAIL:])

    def _without_start(self, ids: list[int], text: str, special: bool) -> list[int]:
        """Only the beginning of the whole prompt has the model's start tokens."""
        start = self._tokenizer.encode("", parse_special=False)
        if not start or ids[: len(start)] != start:
            return ids
        names = (name for name, i in self._tokenizer.special_tokens.items() if i == start[0])
        # The template may have written it there; the tokenizer adds none to that.
        written = special and any(text.startswith(name) for name in names)
        return ids if written else ids[len(start) :]


def _is_short(
    prompt: str | Sequence[ChatMessage], tools: Sequence[Tool], options: Mapping[str, Any]
) -> bool:
    left = _INLINE_CHARACTERS
    pending: list[Any] = [prompt, options]
    for tool in tools:
        pending += [tool.name, tool.description, tool.parameters]
    while pending and left >= 0:
        value = pending.pop()
        left -= 1
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, ChatMessage):
            left -= len(value.content) + len(value.reasoning) + len(value.name or "")
            left -= sum(len(call.name) + len(call.arguments) for call in value.tool_calls)
        elif isinstance(value, Mapping):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
    return left >= 0
