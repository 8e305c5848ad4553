"""The bodies that OpenAI's API knows, field by field, as they are written in JSON.

Null means "not given" everywhere. Fields that are accepted here but cannot be honoured are sorted
out in `themis_openai_server.policy`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from themis_core.messages.request import MAX_LOGPROBS

_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Positive = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Logprobs = Annotated[int, msgspec.Meta(ge=0, le=MAX_LOGPROBS)]
_Name = Annotated[str, msgspec.Meta(max_length=512)]
Prompt = str | list[str | _Count | list[_Count]]


class Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of everything in a body: an unknown field is an error."""


class ContentPart(Strict, kw_only=True):
    """A part of a message. Only text can be understood; the others are named to be refused."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None
    prompt_cache_breakpoint: Any = None


class FunctionCall(Strict, kw_only=True):
    """Name and arguments (JSON text) of a call."""

    name: str
    arguments: str


class ToolCallBody(Strict, kw_only=True):
    """A call that the model made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # Left in by clients that collected it from a stream.


class MessageBody(Strict, kw_only=True):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # What clients send back when they repeat an answer of ours: always null or empty.
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None


class FunctionBody(Strict, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Strict, kw_only=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionBody


class JsonSchemaBody(Strict, kw_only=True):
    """The schema of a `response_format`. Output always obeys it, `strict` or not."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any]
    strict: bool | None = None


class StructuredOutputs(Strict, kw_only=True):
    """Extension, named as vLLM names it: what the output must be. Exactly one is given.

    `grammar` is Lark, or GBNF if its rules are defined by `::=`; `lark` and `gbnf` say which.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    lark: str | None = None
    gbnf: str | None = None
    json_object: bool | None = None


class ResponseFormat(Strict, kw_only=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None


class StreamOptions(Strict, kw_only=True):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class AdapterBody(Strict, kw_only=True):
    """Extension: a LoRA adapter by name."""

    name: str
    weight: float = 1.0


class GenerationBody(Strict, kw_only=True):
    """What chat and completions have in common."""

    model: _Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_tokens: _Positive | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[_Count, float] | None = None
    user: Any = None
    # Extensions, named as vLLM names them.
    top_k: _Int32 | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: _Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[_Count] | None = None
    priority: _Int32 | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: _Int32 | None = None
    cache_salt: str | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None
    adapters: list[AdapterBody] | None = None


class ChatBody(GenerationBody, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[MessageBody], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Positive | None = None
    logprobs: bool | None = None
    top_logprobs: _Logprobs | None = None
    tools: list[ToolBody] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    moderation: Any = None
    prediction: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None


class CompletionBody(GenerationBody, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Prompt
    logprobs: _Logprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingBody(Strict, kw_only=True):
    """The body of POST /v1/embeddings."""

    input: Prompt
    model: _Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Any = None
