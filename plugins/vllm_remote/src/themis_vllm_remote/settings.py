"""What `backend = "vllm"` and `backend = "vllm_engine"` can be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Url = Annotated[str, Meta(min_length=1)]
WORKER_SCHEMES = {"shm", "unix"}


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "vllm"`: a server, or several that serve the same model."""

    endpoint: Annotated[
        Url | list[Url],
        Meta(
            description="Where vLLM is: http://, https://, http+unix://, grpc://, grpcs://, or "
            "shm:// and unix:// of a Themis worker. A list of equal servers shares the load."
        ),
    ]
    model: Annotated[
        str, Meta(description="The name that the server serves the model by; default: its first.")
    ] = ""
    api_key: Annotated[
        str, Meta(description="What the server was given as --api-key.", extra={"secret": True})
    ] = ""
    tokenizer: Annotated[
        str,
        Meta(
            description="Directory with the model's tokenizer files. With it, template, text, "
            "stop strings and tool calls are made here and only token ids travel; without it, "
            "the HTTP server does them. A gRPC server sends its own files."
        ),
    ] = ""
    structured: Annotated[
        Literal["native", "guidance"],
        Meta(
            description="How constraints are sent: as vLLM's own fields, or as llguidance "
            "grammars, which are exact, know Lark and make tool calls right, for servers started "
            'with --structured-outputs-config \'{"backend": "guidance"}\'.'
        ),
    ] = "native"
    prefixes: Annotated[
        Literal["separate", "shared"],
        Meta(
            description="Whether tenants may profit from each other's prompts in the server's "
            "prefix cache. A gRPC server cannot separate them, so their requests are refused."
        ),
    ] = "separate"
    start_timeout: Annotated[
        Seconds, Meta(description="How long a server may still be starting, in seconds.")
    ] = 30.0
    connect_timeout: Annotated[Seconds, Meta(description="For one connection, in seconds.")] = 5.0
    stall_timeout: Annotated[
        Seconds,
        Meta(description="A stream that brings nothing for so many seconds has failed."),
    ] = 300.0
    connections: Annotated[int, Meta(ge=1, description="Most connections to one endpoint.")] = 1024
    retries: Annotated[
        int,
        Meta(ge=0, description="How often a request that has brought nothing yet is tried again."),
    ] = 2
    resume: Annotated[
        bool,
        Meta(
            description="Go on with a stream whose server died: asked again, compared with what "
            "was sent, and continued if it is the same."
        ),
    ] = False
    breaker_failures: Annotated[
        int, Meta(ge=1, description="So many failures in a row close an endpoint off …")
    ] = 5
    breaker_pause: Annotated[
        Seconds, Meta(description="… for so many seconds; then one request tries it.")
    ] = 10.0
    metrics_interval: Annotated[
        Seconds, Meta(description="How often the load of several endpoints is read, in seconds.")
    ] = 1.0
    ca: Annotated[
        str, Meta(description="PEM file of the authority of the server's certificate.")
    ] = ""
    certificate: Annotated[
        str, Meta(description="PEM file of this client's certificate, for mTLS.")
    ] = ""
    key: Annotated[str, Meta(description="PEM file of that certificate's key.")] = ""


def transports_of(settings: VllmSettings) -> set[str]:
    """The transports that reach a Themis worker at these endpoints: plugins of that name."""
    urls = [settings.endpoint] if isinstance(settings.endpoint, str) else settings.endpoint
    return {scheme_of(url) for url in urls} & WORKER_SCHEMES


def scheme_of(url: str) -> str:
    """What kind of endpoint it is, also for URLs that are wrong otherwise."""
    return url.partition("://")[0].lower()


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "vllm_engine"`: the engine itself, for `themis worker`."""

    path: Annotated[
        str, Meta(min_length=1, description="The model's directory, with its tokenizer files.")
    ]
    adapters: Annotated[
        dict[str, str], Meta(description="LoRA adapters by name: their PEFT directories.")
    ] = {}
    max_adapters: Annotated[
        int, Meta(ge=0, description="Most adapters in one batch; 0: the model takes none.")
    ] = 0
    max_adapter_rank: Annotated[int, Meta(ge=1, description="The highest rank of an adapter.")] = 16
    context: Annotated[
        Count | None, Meta(description="Most tokens of a sequence; default: as trained.")
    ] = None
    parallel: Annotated[int, Meta(ge=1, description="Most sequences computed at once.")] = 256
    dtype: Annotated[str, Meta(description="As vLLM's --dtype.")] = "auto"
    engine: Annotated[
        dict[str, Any],
        Meta(
            description="Further arguments of vLLM's AsyncEngineArgs, such as "
            "tensor_parallel_size or gpu_memory_utilization."
        ),
    ] = {}
