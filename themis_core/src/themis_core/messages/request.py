"""What a caller asks for."""

from __future__ import annotations

import math
import uuid
from typing import Any, Literal

import msgspec

from themis_core.errors import InvalidRequest
from themis_core.messages.chat import ChatMessage, NamedTool, Tool, ToolChoice

MAX_LOGPROBS = 20


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. The defaults change nothing about the model's distribution.

    `temperature` 0 is greedy decoding; then `top_k`, `top_p`, `min_p` and `typical_p` have no
    effect. `top_k` 0 means no limit. `seed` makes sampled output repeatable; without one, a random
    seed is drawn. `logprobs` is the number of alternatives reported for each token (0: only the
    chosen one; None: none at all). `max_tokens` None means up to the end of the context.

    Raises `InvalidRequest`, naming the field, for values outside its range.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", self, "at least 1")
        _check(self.min_tokens >= 0, "min_tokens", self, "0 or more")
        _check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            self,
            f"at most max_tokens ({self.max_tokens})",
        )
        # Smaller or larger ones would be 0 or infinite in the arithmetic of the logits.
        valid = self.temperature == 0.0 or 1e-5 <= self.temperature <= 1e5
        _check(valid, "temperature", self, "0 (greedy), or between 1e-5 and 1e5")
        _check(self.top_k >= 0, "top_k", self, "0 (no limit) or more")
        _check(0.0 < self.top_p <= 1.0, "top_p", self, "above 0 and at most 1")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self, "between 0 and 1")
        _check(0.0 < self.typical_p <= 1.0, "typical_p", self, "above 0 and at most 1")
        _check(0.0 < self.repetition_penalty < math.inf, "repetition_penalty", self, "above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            _check(-2.0 <= getattr(self, name) <= 2.0, name, self, "between -2 and 2")
        for bias in self.logit_bias.values():
            _check(math.isfinite(bias), "logit_bias", self, "finite numbers (-100 bans a token)")
        _check(self.seed is None or 0 <= self.seed < 2**64, "seed", self, "between 0 and 2**64-1")
        _check(self.n >= 1, "n", self, "at least 1")
        _check(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs",
            self,
            f"between 0 and {MAX_LOGPROBS}",
        )
        _check(all(self.stop), "stop", self, "non-empty strings")

    @property
    def greedy(self) -> bool:
        """True if the most probable token is always taken."""
        return self.temperature == 0.0


def _check(valid: bool, field: str, params: SamplingParams, expected: str) -> None:
    if not valid:
        raise InvalidRequest(
            f"{field} is {getattr(params, field)!r}, but must be {expected}.",
            field=f"sampling.{field}",
        )


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """A language that the output must belong to.

    `value` is a JSON Schema (dict) for `json_schema`, source text for `regex`, `lark` and `gbnf`,
    and a list of strings for `choice`.
    """

    kind: Literal["json_schema", "regex", "lark", "gbnf", "choice"]
    value: Any


class AdapterWeight(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter by name, and how strongly it applies (1.0: as trained)."""

    name: str
    weight: float = 1.0


def new_request_id() -> str:
    """A fresh request id, unique across processes."""
    return uuid.uuid4().hex


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One generation. Exactly one of `prompt` (text or token ids) and `messages` is given.

    A text `prompt` is completed as it is; special tokens written in it are plain text. `messages`
    pass through the model's chat template, which gets `template_options` as further variables.
    `truncate_prompt_tokens` keeps so many tokens of the prompt, its last; without it no prompt is
    ever cut. `timeout` is in seconds from acceptance. `tenant` separates accounts for quotas and
    caches; `cache_salt` separates prefix caches within one. `resume_token_ids` were generated for
    this request before, by a backend that is gone: they count as output, and the events go on
    after them. An empty `model` means the default model.

    Raises `InvalidRequest`, naming the field, for combinations that mean nothing.
    """

    model: str = ""
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    template_options: dict[str, Any] = {}
    truncate_prompt_tokens: int | None = None
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)
    constraint: Constraint | None = None
    adapters: tuple[AdapterWeight, ...] = ()
    priority: int = 0
    timeout: float | None = None
    tenant: str | None = None
    cache_salt: str | None = None
    resume_token_ids: tuple[int, ...] = ()
    request_id: str = msgspec.field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise InvalidRequest(
                "Exactly one of prompt and messages must be given.",
                field="prompt",
                remedy="Give prompt (text or token ids) or a non-empty list of messages.",
            )
        if self.prompt is not None and len(self.prompt) == 0:
            raise InvalidRequest("prompt is empty.", field="prompt", remedy="Give some text.")
        if self.tools and not self.messages:
            raise InvalidRequest("tools need messages, not a prompt.", field="tools")
        if self.template_options and not self.messages:
            raise InvalidRequest(
                "template_options need messages, not a prompt.", field="template_options"
            )
        self._check_tool_choice()
        if self.resume_token_ids and self.sampling.n > 1:
            raise InvalidRequest(
                "Only a request with one choice can be resumed.", field="resume_token_ids"
            )
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {self.truncate_prompt_tokens}, but must be at least 1.",
                field="truncate_prompt_tokens",
            )
        if self.timeout is not None and not self.timeout > 0:
            raise InvalidRequest(
                f"timeout is {self.timeout!r}, but must be above 0 seconds.", field="timeout"
            )

    def _check_tool_choice(self) -> None:
        choice = self.tool_choice
        if choice in ("auto", "none"):
            return
        if not self.tools:
            raise InvalidRequest("tool_choice needs tools.", field="tool_choice")
        if isinstance(choice, NamedTool) and choice.name not in {t.name for t in self.tools}:
            raise InvalidRequest(
                f"tool_choice names {choice.name!r}, which is not among the tools.",
                field="tool_choice",
                remedy=f"Tools are {', '.join(repr(t.name) for t in self.tools)}.",
            )
        if self.constraint is not None:
            raise InvalidRequest(
                "A constraint and a tool_choice that forces a call exclude each other.",
                field="tool_choice",
            )


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts (or token id sequences) to embed, one vector each."""

    model: str = ""
    inputs: tuple[str | tuple[int, ...], ...]
    tenant: str | None = None
    request_id: str = msgspec.field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        if not self.inputs or not all(len(item) for item in self.inputs):
            raise InvalidRequest("inputs must be non-empty texts.", field="inputs")
