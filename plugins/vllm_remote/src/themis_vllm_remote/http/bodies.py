"""What is sent to vLLM. Every sampling field is written out: what is left out, a model's own
`generation_config.json` would decide.
"""

from __future__ import annotations

import secrets
from typing import Any

from themis_core.messages import ChatMessage, GenerateRequest, NamedTool, Tool
from themis_vllm_remote.checks import seed_of
from themis_vllm_remote.door import Order


def sampling(request: GenerateRequest) -> dict[str, Any]:
    """The sampling fields that all routes share."""
    params = request.sampling
    fields: dict[str, Any] = {
        "n": params.n,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "min_tokens": params.min_tokens,
        "ignore_eos": params.ignore_eos,
        "stop_token_ids": list(params.stop_token_ids),
    }
    if params.seed is not None:
        fields["seed"] = seed_of(params.seed)
    if params.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    return fields


def completion(order: Order, model: str) -> dict[str, Any]:
    """`/v1/completions`, with the prompt as token ids."""
    body = _common(order, model) | {"prompt": order.ids, "max_tokens": order.limit}
    if order.request.sampling.logprobs is not None:
        body["logprobs"] = order.request.sampling.logprobs
    return body


def chat(order: Order, model: str) -> dict[str, Any]:
    """`/v1/chat/completions`."""
    request = order.request
    body = _common(order, model) | {"messages": list(map(message, request.messages))}
    if order.limit is not None:
        body["max_completion_tokens"] = order.limit
    if request.sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.sampling.logprobs}
    if request.template_options:
        body["chat_template_kwargs"] = request.template_options
    if request.tools and request.tool_choice != "none":
        forced = request.tool_choice != "auto"
        body["tools"] = [tool(each, strict=forced) for each in request.tools]
        body["tool_choice"] = _choice(request)
        body["parallel_tool_calls"] = request.parallel_tool_calls
    return body


def tokens(order: Order, model: str) -> dict[str, Any]:
    """`/inference/v1/generate`: token ids in and out."""
    params = sampling(order.request) | {"max_tokens": order.limit, "detokenize": False}
    if order.request.sampling.logprobs is not None:
        params["logprobs"] = order.request.sampling.logprobs
    if order.structured is not None:
        params["structured_outputs"] = dict(order.structured)
    body: dict[str, Any] = {
        "model": order.adapter or model,
        "token_ids": order.ids,
        "sampling_params": params,
        "stream": True,
        # A server refuses an id that it knows; the request's own may be asked again.
        "request_id": f"{order.request.request_id}-{secrets.token_hex(4)}",
    }
    if order.salt is not None:
        body["cache_salt"] = order.salt
    return body


def message(given: ChatMessage) -> dict[str, Any]:
    """One turn as OpenAI writes it; `reasoning` is vLLM's."""
    body: dict[str, Any] = {"role": given.role, "content": given.content}
    if given.name is not None:
        body["name"] = given.name
    if given.reasoning:
        body["reasoning"] = given.reasoning
    if given.tool_calls:
        body["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in given.tool_calls
        ]
    if given.tool_call_id is not None:
        body["tool_call_id"] = given.tool_call_id
    return body


def tool(given: Tool, *, strict: bool) -> dict[str, Any]:
    """A tool; without `strict`, vLLM forces a call but not what its arguments are."""
    function: dict[str, Any] = {"name": given.name, "description": given.description}
    function["parameters"] = given.parameters or {"type": "object", "properties": {}}
    if strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice(request: GenerateRequest) -> Any:
    if isinstance(request.tool_choice, NamedTool):
        return {"type": "function", "function": {"name": request.tool_choice.name}}
    return request.tool_choice


def _common(order: Order, model: str) -> dict[str, Any]:
    body = sampling(order.request) | {
        "model": order.adapter or model,
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if order.structured is not None:
        body["structured_outputs"] = dict(order.structured)
    if order.salt is not None:
        body["cache_salt"] = order.salt
    return body
