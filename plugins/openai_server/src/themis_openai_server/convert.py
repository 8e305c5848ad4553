"""From a body to the core's requests."""

from __future__ import annotations

from typing import Any

import msgspec

from themis_core.errors import InvalidRequest
from themis_core.messages import (
    AdapterWeight,
    EmbedRequest,
    GenerateRequest,
    SamplingParams,
    new_request_id,
)
from themis_openai_server.body import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    GenerationBody,
    Prompt,
)
from themis_openai_server.constraints import constraint_of
from themis_openai_server.conversation import messages_of, tools_of
from themis_openai_server.policy import check_refused, refused

# OpenAI completes 16 tokens unless told otherwise; chats go on to the end of the context.
COMPLETION_MAX_TOKENS = 16
MAX_CHOICES = 1024

# Named alike in the bodies and in `SamplingParams`.
_SAMPLING = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "n",
    "ignore_eos",
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request for text: one core request for each prompt, and how to answer."""

    id: str
    model: str
    requests: tuple[GenerateRequest, ...]
    stream: bool
    include_usage: bool
    token_ids: bool
    logprobs: bool

    @property
    def choices_per_request(self) -> int:
        """Choice `i` of prompt `p` is choice `p * choices_per_request + i` of the answer."""
        return self.requests[0].sampling.n


def chat_job(body: ChatBody, tenant: str | None) -> Job:
    """Raises `InvalidRequest` and `UnsupportedField`."""
    check_refused(body)
    sampling = _sampling(body)
    if body.max_completion_tokens is not None:
        if body.max_tokens not in (None, body.max_completion_tokens):
            raise InvalidRequest(
                "max_tokens and max_completion_tokens differ.", field="max_completion_tokens"
            )
        sampling["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        sampling["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs is not None:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", field="top_logprobs")
    tools, tool_choice = tools_of(body.tools, body.tool_choice)
    request = GenerateRequest(
        messages=messages_of(body.messages),
        tools=tools,
        tool_choice=tool_choice,
        # Without tools it asks for nothing.
        parallel_tool_calls=body.parallel_tool_calls is not False or not tools,
        template_options=_template_options(body),
        **_common(body, sampling, tenant),
    )
    return _job(body, (request,))


def completion_job(body: CompletionBody, tenant: str | None) -> Job:
    """Raises `InvalidRequest` and `UnsupportedField`."""
    check_refused(body)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise refused("best_of", "answers are not ranked.", "Leave it out, or set it to n.")
    sampling = {"max_tokens": COMPLETION_MAX_TOKENS, **_sampling(body)}
    sampling["logprobs"] = body.logprobs
    prompts = _prompts(body.prompt, "prompt")
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise InvalidRequest(
            f"The prompts times n are more than {MAX_CHOICES} choices.", field="prompt"
        )
    common = _common(body, sampling, tenant)
    first = GenerateRequest(prompt=prompts[0], **common)
    rest = (GenerateRequest(prompt=prompt, **common) for prompt in prompts[1:])
    return _job(body, (first, *rest))


def embed_request(body: EmbeddingBody, tenant: str | None) -> EmbedRequest:
    """Raises `InvalidRequest` and `UnsupportedField`."""
    check_refused(body)
    inputs = tuple(_prompts(body.input, "input"))
    return EmbedRequest(model=body.model or "", inputs=inputs, tenant=tenant)


def _job(body: GenerationBody, requests: tuple[GenerateRequest, ...]) -> Job:
    stream = bool(body.stream)
    if body.stream_options is not None and not stream:
        raise InvalidRequest("stream_options needs stream to be true.", field="stream_options")
    return Job(
        # Unique also where a caller sends several prompts, each of which has an id of its own.
        id=requests[0].request_id if len(requests) == 1 else new_request_id(),
        model=body.model or "",
        requests=requests,
        stream=stream,
        include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        token_ids=bool(body.return_token_ids),
        logprobs=requests[0].sampling.logprobs is not None,
    )


def _common(body: GenerationBody, sampling: dict[str, Any], tenant: str | None) -> dict[str, Any]:
    return {
        "model": body.model or "",
        "sampling": SamplingParams(**sampling),
        "constraint": constraint_of(body.response_format, body.structured_outputs),
        "adapters": tuple(AdapterWeight(name=a.name, weight=a.weight) for a in body.adapters or ()),
        "priority": body.priority or 0,
        "truncate_prompt_tokens": body.truncate_prompt_tokens,
        "cache_salt": body.cache_salt,
        "tenant": tenant,
    }


def _sampling(body: GenerationBody) -> dict[str, Any]:
    values = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        values["top_k"] = 0 if body.top_k == -1 else body.top_k  # vLLM says -1 for "no limit".
    if body.stop is not None:
        values["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.stop_token_ids is not None:
        values["stop_token_ids"] = tuple(body.stop_token_ids)
    return values


def _template_options(body: ChatBody) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort
    if effort is not None and options.setdefault("reasoning_effort", effort) != effort:
        raise InvalidRequest(
            "reasoning_effort and chat_template_kwargs.reasoning_effort differ.",
            field="reasoning_effort",
        )
    return options


def _prompts(given: Prompt, field: str) -> list[str | tuple[int, ...]]:
    """One prompt or several: a text, texts, token ids, or lists of token ids."""
    if isinstance(given, str):
        items: list[Any] = [given]
    elif given and all(isinstance(item, int) for item in given):
        items = [tuple(given)]
    elif all(isinstance(item, str) for item in given):
        items = list(given)
    elif all(isinstance(item, list) for item in given):
        items = [tuple(item) for item in given if isinstance(item, list)]
    else:
        raise InvalidRequest(
            f"{field} mixes texts and token ids.",
            field=field,
            remedy="Give a text, a list of texts, a list of token ids, or a list of such lists.",
        )
    if not items or not all(items):
        raise InvalidRequest(f"{field} is empty.", field=field, remedy="Give some text.")
    return items
