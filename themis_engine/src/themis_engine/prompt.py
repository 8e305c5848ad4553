"""From what a request says to the token ids that the model sees."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from themis_core.errors import InvalidRequest, UnsupportedField
from themis_core.messages import ChatMessage, GenerateRequest, Tool
from themis_engine.chat import ChatTemplate
from themis_engine.runner import ModelRunner

# Longer texts are tokenised in a thread, so that they do not hold up the event loop.
_INLINE_CHARACTERS = 8192


class PromptEncoder:
    """Template and tokenizer of one model. Raises `ModelFileInvalid` for a broken template."""

    def __init__(self, runner: ModelRunner) -> None:
        self._tokenizer = runner.tokenizer
        self._vocab_size = runner.info.vocab_size
        source = self._tokenizer.chat_template
        self._template = (
            None if source is None else ChatTemplate(source, self._tokenizer.template_tokens)
        )

    @property
    def chat(self) -> bool:
        """True if messages can be taken."""
        return self._template is not None

    async def request(self, request: GenerateRequest) -> list[int]:
        """The prompt of a request. Raises `InvalidRequest`, or `UnsupportedField` for messages."""
        if isinstance(request.prompt, tuple):
            self.check_ids("prompt", request.prompt)
            return list(request.prompt)
        prompt = request.messages if request.prompt is None else request.prompt
        ids = await self.encode(prompt, request.tools)
        if not ids:
            raise InvalidRequest("The prompt has no tokens.", field="prompt")
        return ids

    async def encode(
        self, prompt: str | Sequence[ChatMessage], tools: Sequence[Tool] = ()
    ) -> list[int]:
        """Token ids of a text, or of messages through the template."""
        if isinstance(prompt, str):
            size = len(prompt)
        else:
            size = sum(len(message.content) for message in prompt)
        try:
            if size <= _INLINE_CHARACTERS:
                return self._encode(prompt, tools)
            return await asyncio.to_thread(self._encode, prompt, tools)
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"The prompt is no valid text: {error.reason} at character {error.start}.",
                field="prompt",
            ) from error

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

    def _encode(self, prompt: str | Sequence[ChatMessage], tools: Sequence[Tool]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, parse_special=False)
        if self._template is None:
            raise UnsupportedField(
                "This model has no chat template.",
                field="messages",
                remedy="Give the prompt as text instead.",
            )
        parts = self._template.render_parts(prompt, tools, self._has_special)
        (text, special), *rest = parts
        ids = self._tokenizer.encode(text, parse_special=special)
        start = self._tokenizer.encode("", parse_special=False) if rest else []
        for text, special in rest:
            more = self._tokenizer.encode(text, parse_special=special)
            # Only the beginning of the whole prompt has the model's start tokens.
            ids += more[len(start) :] if start and more[: len(start)] == start else more
        return ids

    def _has_special(self, text: str) -> bool:
        """True if the text contains what would be read as a special token."""
        encode = self._tokenizer.encode
        return encode(text, parse_special=True) != encode(text, parse_special=False)
