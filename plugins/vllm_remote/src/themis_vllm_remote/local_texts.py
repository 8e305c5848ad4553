"""Texts made here, with the model's tokenizer files: only token ids travel.

Template, tokenizer, stop strings, tool calls and the check of constraints are the engine's, so an
answer of vLLM comes out as one of a local model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from themis_core.errors import ThemisError
from themis_core.messages import ChatMessage, GenerateEvent, GenerateRequest
from themis_engine.crossing import Begun, Ended, Item, Tokens
from themis_engine.intake import Intake
from themis_engine.model_info import CHAT_FIELDS, TOOL_FIELDS
from themis_engine.options import EngineOptions
from themis_engine.output import Output
from themis_engine.runner import ModelRunner, RunnerInfo, Tokenizer
from themis_engine.sampler import Sampled
from themis_engine.tools import ChatFormat
from themis_vllm_remote.checks import check_sampling
from themis_vllm_remote.door import Facts, Order, Piece
from themis_vllm_remote.fields import SERVER_FIELDS
from themis_vllm_remote.marked_tokenizer import MarkedTokenizer
from themis_vllm_remote.structured import Kind, structured_outputs
from themis_vllm_remote.texts import check_end

_FIELDS = SERVER_FIELDS - CHAT_FIELDS - TOOL_FIELDS  # Whatever the tokenizer's model can do.
_HEAD = 4096  # So many tokens decide which endpoint has them cached.


@dataclass(frozen=True)
class _Model:
    """What `Intake` asks of a runner."""

    tokenizer: Tokenizer
    info: RunnerInfo


class LocalTexts:
    """For a door that carries token ids. `kind` is how constraints are sent."""

    def __init__(
        self, tokenizer: Tokenizer, facts: Facts, kind: Kind, plugin: str = "vllm"
    ) -> None:
        info = RunnerInfo(
            vocab_size=facts.vocab_size,
            context_length=facts.context,
            max_sequences=1,
            # How much fits is the server's business: it queues what does not fit now.
            kv_capacity=facts.context,
            max_batch=1,
        )
        self._intake = Intake(cast(ModelRunner, _Model(tokenizer, info)), EngineOptions())
        # The texts are read with the tokenizer as it is, and the grammars are vLLM's to read.
        marked = MarkedTokenizer(tokenizer, facts.vocab_size)
        self._format = ChatFormat.of(tokenizer.chat_template, marked)
        self._kind = kind
        self._plugin = plugin
        fields = _FIELDS
        if self._intake.chat:
            fields |= CHAT_FIELDS
        # Without grammars nothing would make a forced call come out right.
        if self._intake.tools and kind == "guidance":
            fields |= TOOL_FIELDS
        self._fields = fields

    @property
    def fields(self) -> frozenset[str]:
        """The optional request fields that are honoured."""
        return self._fields

    async def prepare(
        self, request: GenerateRequest, adapter: str | None, salt: str | None
    ) -> tuple[Order, LocalAnswer]:
        """The prompt's ids, the limit and the grammar."""
        check_sampling(request, self._plugin)
        job = await self._intake.prepare(request, (), ())
        first = job.group.sequences[0]
        order = Order(
            request=request,
            ids=first.tokens,
            limit=first.limit,
            adapter=adapter,
            structured=self._structured(request),
            salt=salt,
            head=tuple(first.tokens[:_HEAD]),
        )
        return order, LocalAnswer(job.output, order, self._plugin)

    async def learn(self, pieces: list[Piece]) -> None:
        """Nothing: the bytes of all tokens are known."""

    async def explain(self, error: ThemisError, order: Order) -> ThemisError:
        """The same: everything that can be told was checked before."""
        return error

    async def encode(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages through the template."""
        return tuple(await self._intake.prompts.encode(prompt))

    async def decode(self, ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        return self._intake.prompts.decode(ids)

    async def embeddable(
        self, inputs: tuple[str | tuple[int, ...], ...]
    ) -> Sequence[str | Sequence[int]]:
        """Token ids."""
        return [await self._intake.text(item) for item in inputs]

    def _structured(self, request: GenerateRequest) -> dict[str, Any] | None:
        if request.constraint is not None:
            return structured_outputs(request.constraint, self._kind)
        if request.messages and request.tools and self._kind == "guidance":
            made = self._format.constraint(request)
            return None if made is None else structured_outputs(made, self._kind, ours=True)
        return None


class LocalAnswer:
    """Pieces become the engine's items, and those its events."""

    def __init__(self, output: Output, order: Order, plugin: str) -> None:
        self._output = output
        self._limit = order.limit
        self._top = order.request.sampling.logprobs
        self._plugin = plugin
        self._begun = False
        self._counts: dict[int, int] = {}

    @property
    def done(self) -> bool:
        """True once all choices are complete."""
        return self._output.done

    def take(self, pieces: list[Piece]) -> tuple[list[GenerateEvent], ThemisError | None]:
        """The events of new pieces, and the error that follows them."""
        items: list[Item] = []
        try:
            for piece in pieces:
                self._add(piece, items)
        except ThemisError as error:
            items.append(error)
        return self._output.take(items)

    def _add(self, piece: Piece, items: list[Item]) -> None:
        if not self._begun:
            self._begun = True
            items.append(Begun(piece.cached_tokens))
        count = self._counts[piece.index] = self._counts.get(piece.index, 0) + len(piece.token_ids)
        ended = None
        if piece.reason is not None:
            check_end(piece, count, self._limit, self._plugin)
            limited = piece.reason == "length"
            ended = Ended(at_limit=limited, silent=not limited, matched=piece.stop_id)
        if piece.token_ids or ended is not None:
            items.append(Tokens(piece.index, self._sampled(piece), ended))

    def _sampled(self, piece: Piece) -> list[Sampled]:
        if self._top is None:
            return [Sampled(token) for token in piece.token_ids]
        return [
            Sampled(token, logprob, best(top, self._top))
            for token, (logprob, top) in zip(piece.token_ids, piece.logprobs, strict=True)
        ]


def best(top: Sequence[tuple[int, float]], count: int) -> tuple[tuple[int, float], ...]:
    """The most probable alternatives: vLLM adds the chosen token to them."""
    return tuple(sorted(top, key=lambda pair: -pair[1])[:count])
