"""Texts made by the server: its tokenizer, its chat template, its parsers of calls and reasoning.

What could be ignored there is refused here, and what comes is checked: lengths, stop strings,
constraints, the arguments of forced calls.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from themis_core.errors import InvalidRequest, ThemisError, UnsupportedField
from themis_core.messages import ChatMessage, Constraint, GenerateRequest, Tool
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.constraint import ConstraintCompiler
from themis_vllm_remote.checks import check_ids, check_length, check_sampling
from themis_vllm_remote.door import Facts, Order, Piece
from themis_vllm_remote.server_answer import Check, ServerAnswer
from themis_vllm_remote.structured import Kind, structured_outputs

_KEPT = 64
_HEAD = 16_384  # Characters that decide which endpoint has them cached.


class Words(Protocol):
    """The server's tokenizer, which `ServerTexts` asks."""

    async def encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Any = None,
    ) -> list[int]: ...

    async def decode(self, ids: Sequence[int]) -> str: ...


class ServerTexts:
    """For an OpenAI-compatible server that alone has the tokenizer."""

    def __init__(self, words: Words, facts: Facts, fields: frozenset[str], kind: Kind) -> None:
        self._words = words
        self._facts = facts
        self._fields = fields
        self._kind = kind
        self._compiler = ConstraintCompiler(ByteTokenizer(), ByteTokenizer.VOCAB_SIZE)
        self._checks: OrderedDict[bytes, Check] = OrderedDict()
        self._bytes: dict[int, bytes] = {}

    @property
    def fields(self) -> frozenset[str]:
        """The optional request fields that are honoured."""
        return self._fields

    async def prepare(
        self, request: GenerateRequest, adapter: str | None, salt: str | None
    ) -> tuple[Order, ServerAnswer]:
        """The prompt as ids; messages stay messages."""
        check_sampling(request, "vllm")
        for name in ("logit_bias", "stop_token_ids"):
            ids = getattr(request.sampling, name)
            check_ids(f"sampling.{name}", ids, self._facts.vocab_size, "vllm")
        check = await self._check(request)
        ids, limit = await self._prompt(request), request.sampling.max_tokens
        if ids is not None:
            limit = check_length(len(ids), request, self._facts.context, "vllm")
        structured = None
        if request.constraint is not None:
            structured = structured_outputs(request.constraint, self._kind)
        order = Order(
            request=request,
            ids=ids,
            limit=limit,
            adapter=adapter,
            structured=structured,
            salt=salt,
            texts=True,
            head=tuple(ids) if ids is not None else _codes(request),
        )
        return order, ServerAnswer(order, self._facts.context, check, self._bytes)

    async def learn(self, pieces: list[Piece]) -> None:
        """Ask for the text of tokens whose log-probabilities came; each is asked for once."""
        missing = {
            token
            for piece in pieces
            if piece.logprobs
            for token in (*piece.token_ids, *(i for _, top in piece.logprobs for i, _ in top))
            if token not in self._bytes
        }
        for token in missing:
            self._bytes[token] = (await self._words.decode([token])).encode()

    async def explain(self, error: ThemisError, order: Order) -> ThemisError:
        """A prompt that was too long is only known to be so when it is counted."""
        request = order.request
        if order.ids is None and isinstance(error, InvalidRequest):
            tools = () if request.tool_choice == "none" else request.tools
            ids = await self._words.encode(request.messages, tools, request.template_options)
            try:
                check_length(len(ids), request, self._facts.context, "vllm")
            except ThemisError as longer:
                return longer
        return error

    async def encode(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """The server's token ids."""
        return tuple(await self._words.encode(prompt))

    async def decode(self, ids: tuple[int, ...]) -> str:
        """The server's text."""
        check_ids("token_ids", ids, self._facts.vocab_size, "vllm")
        return await self._words.decode(ids)

    async def embeddable(
        self, inputs: tuple[str | tuple[int, ...], ...]
    ) -> Sequence[str | Sequence[int]]:
        """As they are: the server has the tokenizer."""
        for item in inputs:
            if not isinstance(item, str):
                check_ids("inputs", item, self._facts.vocab_size, "vllm")
        return inputs

    async def _prompt(self, request: GenerateRequest) -> list[int] | None:
        cut = request.truncate_prompt_tokens
        if request.prompt is None:
            if cut is not None:
                raise UnsupportedField(
                    "The server's template makes the prompt of messages, which cannot be cut.",
                    field="truncate_prompt_tokens",
                    remedy="Give the model's tokenizer files with the setting tokenizer.",
                    plugin="vllm",
                )
            return None
        if isinstance(request.prompt, str):
            ids = await self._words.encode(request.prompt)
        else:
            check_ids("prompt", request.prompt, self._facts.vocab_size, "vllm")
            ids = list(request.prompt)
        if not ids:
            raise InvalidRequest("The prompt has no tokens.", field="prompt", plugin="vllm")
        return ids if cut is None else ids[-cut:]

    async def _check(self, request: GenerateRequest) -> Check | None:
        """Refuses constraints that cannot be honoured; the check of what comes."""
        constraint = request.constraint
        if constraint is None:
            return None
        if request.sampling.ignore_eos:
            raise InvalidRequest(
                "ignore_eos and a constraint exclude each other: it says where the output ends.",
                field="sampling.ignore_eos",
                plugin="vllm",
            )
        if request.tools and request.tool_choice != "none":
            raise InvalidRequest(
                "A constraint leaves no room for calls of the tools.",
                field="tools",
                remedy='Leave out one of them, or set tool_choice to "none".',
                plugin="vllm",
            )
        key = msgspec.msgpack.encode(constraint, order="deterministic")
        found = self._checks.get(key)
        if found is None:
            found = await asyncio.to_thread(self._compile, constraint)
            self._checks[key] = found
        self._checks.move_to_end(key)
        while len(self._checks) > _KEPT:
            self._checks.popitem(last=False)
        return found

    def _compile(self, constraint: Constraint) -> Check:
        return self._compiler.compile(constraint).check


def _codes(request: GenerateRequest) -> tuple[int, ...]:
    """The beginning of a conversation, as numbers that prefixes can be compared by."""
    text = "\0".join(f"{m.role}\0{m.content}" for m in request.messages)
    return tuple(text[:_HEAD].encode()[:_HEAD])
