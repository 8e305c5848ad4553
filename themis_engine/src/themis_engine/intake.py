"""From a request to what the engine computes: prompt, limits, constraint, and the output's way."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from themis_core.errors import InvalidRequest, PromptTooLong, RequestTooLarge
from themis_core.messages import AdapterWeight, Constraint, GenerateRequest
from themis_engine.crossing import EventStream
from themis_engine.kv import PrefixKey
from themis_engine.options import EngineOptions
from themis_engine.output import ChoiceOutput, Output
from themis_engine.prompt import PromptEncoder
from themis_engine.runner import FramedTokenizer, ModelRunner
from themis_engine.sequence import Group, Sequence
from themis_engine.tools import ChatFormat

if TYPE_CHECKING:
    from themis_engine.constraint import ConstraintCompiler, Grammar

_GRAMMARS = 64  # Compiled constraints that are kept.
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is ready for the engine, and what its tokens will go through."""

    group: Group
    output: Output


class Intake:
    """Checks and translates the requests of one model. Lives on the event loop."""

    def __init__(self, runner: ModelRunner, options: EngineOptions) -> None:
        """Raises `ModelFileInvalid` for a broken chat template."""
        self._info = runner.info
        self._tokenizer = runner.tokenizer
        self._keep = options.prefix_cache
        self._arrivals = itertools.count()
        self._compiler: ConstraintCompiler | None = None
        self._grammars: OrderedDict[bytes, Grammar] = OrderedDict()
        self._format = ChatFormat.of(runner.tokenizer.chat_template, runner.tokenizer)
        self.prompts = PromptEncoder(runner)

    @property
    def chat(self) -> bool:
        """True if messages can be taken."""
        return self.prompts.chat

    @property
    def tools(self) -> bool:
        """True if the model's format of tool calls is known."""
        return self._format.tools

    async def text(self, given: str | tuple[int, ...]) -> list[int]:
        """The token ids of a text that is to be embedded."""
        if isinstance(given, str):
            ids = await self.prompts.encode(given)
            if isinstance(self._tokenizer, FramedTokenizer):
                ids += self._tokenizer.text_end
            return ids
        self.prompts.check_ids("inputs", given)
        return list(given)

    async def prepare(
        self,
        request: GenerateRequest,
        adapters: tuple[AdapterWeight, ...],
        chosen: tuple[AdapterWeight, ...],
    ) -> Job:
        """Raises what is wrong with the request, before anything is computed."""
        now = time.monotonic()
        params = request.sampling
        self.prompts.check_ids("sampling.logit_bias", params.logit_bias)
        self.prompts.check_ids("sampling.stop_token_ids", params.stop_token_ids)
        self.prompts.check_ids("resume_token_ids", request.resume_token_ids)
        prepared = await self.prompts.prepare(request)
        prompt = prepared.ids
        grammar = await self._grammar(request, prepared.tail)
        limit = self._limit(request, len(prompt))
        group = Group(
            request=request,
            stream=EventStream(),
            submitted=now,
            deadline=None if request.timeout is None else now + request.timeout,
        )
        arrival = next(self._arrivals)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        # Without a cache, only the choices of one request share their prompt.
        salt = (request.tenant, request.cache_salt) if self._keep else (arrival,)
        for index in range(params.n):
            sequence = Sequence(
                group=group,
                index=index,
                tokens=[*prompt, *request.resume_token_ids],
                prompt_length=len(prompt),
                limit=limit,
                seed=(seed + index * _GOLDEN) % 2**64,
                arrival=arrival,
                key=PrefixKey(adapters, salt),
                matcher=None if grammar is None else grammar.matcher(),
            )
            _resume(sequence, request)
            group.sequences.append(sequence)
        choices = [
            ChoiceOutput(
                index,
                request,
                self._tokenizer,
                self._format.parser(request, prepared.tail) if request.messages else None,
                # What a call must look like is in the markers, which its text lacks.
                grammar if request.constraint is not None else None,
            )
            for index in range(params.n)
        ]
        return Job(group, Output(len(prompt), choices, chosen))

    async def _grammar(self, request: GenerateRequest, tail: str) -> Grammar | None:
        if request.constraint is None:
            return await self._grammar_of_calls(request, tail)
        if request.sampling.ignore_eos:
            raise InvalidRequest(
                "ignore_eos and a constraint exclude each other: it says where the output ends.",
                field="sampling.ignore_eos",
            )
        if request.tools and request.tool_choice != "none":
            raise InvalidRequest(
                "A constraint leaves no room for calls of the tools.",
                field="tools",
                remedy='Leave out one of them, or set tool_choice to "none".',
            )
        return await self._compiled(request.constraint, ours=False)

    async def _grammar_of_calls(self, request: GenerateRequest, tail: str) -> Grammar | None:
        """What makes calls of the request's tools come out right."""
        constraint = self._format.constraint(request, tail)
        if constraint is None:
            return None
        try:
            return await self._compiled(constraint, ours=True)
        except InvalidRequest as error:
            # The caller wrote tools, and has never seen this grammar.
            raise InvalidRequest(
                f"The tools cannot be constrained: {error.message}",
                field="tools",
                remedy=error.remedy,
            ) from error

    async def _compiled(self, constraint: Constraint, *, ours: bool) -> Grammar:
        """A compiled constraint, or the one that was compiled for the same before."""
        key = msgspec.msgpack.encode((ours, constraint), order="deterministic")
        grammar = self._grammars.get(key)
        if grammar is None:
            # In a thread: a large schema takes longer than others should wait.
            grammar = await asyncio.to_thread(self._compile, constraint, ours)
            self._grammars[key] = grammar
        self._grammars.move_to_end(key)
        while len(self._grammars) > _GRAMMARS:
            self._grammars.popitem(last=False)
        return grammar

    def _compile(self, constraint: Constraint, ours: bool) -> Grammar:
        if self._compiler is None:
            # Half a second that only those need who constrain. Two threads may both come here,
            # and make two compilers that do the same.
            from themis_engine.constraint import ConstraintCompiler

            self._compiler = ConstraintCompiler(self._tokenizer, self._info.vocab_size)
        return self._compiler.compile(constraint, tokens=ours)

    def _limit(self, request: GenerateRequest, prompt_length: int) -> int:
        """The most tokens that may be generated; nothing is shortened that was asked for."""
        max_tokens = request.sampling.max_tokens
        resumed = len(request.resume_token_ids)
        if max_tokens is not None and resumed >= max_tokens:
            raise InvalidRequest(
                f"resume_token_ids has {resumed} of max_tokens={max_tokens} tokens: nothing is "
                "left to generate.",
                field="resume_token_ids",
            )
        context, capacity = self._info.context_length, self._info.kv_capacity
        needed = prompt_length + (max_tokens or resumed + 1)
        if needed > context:
            asked = f" and max_tokens={max_tokens}" if max_tokens else ""
            raise PromptTooLong(
                f"The prompt of {prompt_length} tokens{asked} needs {needed} positions, but the "
                f"model's context has {context}.",
                field="prompt" if prompt_length >= context else "sampling.max_tokens",
                remedy="Shorten the prompt, lower max_tokens, or configure a larger context.",
            )
        if needed > capacity:
            raise RequestTooLarge(
                f"The request needs {needed} tokens of KV cache, but there are only {capacity}.",
                field="sampling.max_tokens",
                remedy="Lower max_tokens, or configure a larger KV cache.",
            )
        return max_tokens or min(context, capacity) - prompt_length


def _resume(sequence: Sequence, request: GenerateRequest) -> None:
    """Bring the constraint to where the resumed output ends."""
    matcher = sequence.matcher
    if matcher is None:
        return
    for token in request.resume_token_ids:
        if matcher.accepted([token]) == 0:
            raise InvalidRequest(
                f"resume_token_ids has token {token}, which the constraint does not allow there.",
                field="resume_token_ids",
            )
        matcher.advance(token)
