"""What the test kit offers to Themis: the backend `reference`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from themis_core.hooks import BackendPlugin, hookimpl


class ReferenceAdapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter with what is known of it."""

    path: Annotated[str, msgspec.Meta(min_length=1, description="A PEFT directory.")]
    description: Annotated[str, msgspec.Meta(description="What it is good for.")] = ""


class ReferenceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "reference"`."""

    path: Annotated[
        str, msgspec.Meta(description="A Hugging Face directory with a Llama and its tokenizer.")
    ]
    parallel: Annotated[
        int, msgspec.Meta(ge=1, description="How many requests are computed at once.")
    ] = 8
    kv_tokens: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            description="Tokens that the KV cache holds; 0 is enough for all full contexts.",
        ),
    ] = 0
    prefix_sequences: Annotated[
        int,
        msgspec.Meta(ge=0, description="How many more sequences are kept for their prefixes."),
    ] = 8
    adapters: Annotated[
        dict[str, str | ReferenceAdapter],
        msgspec.Meta(description="LoRA adapters by name: a PEFT directory, or a table with more."),
    ] = {}
    adapter_choice: Annotated[
        Literal["request", "query"],
        msgspec.Meta(description="Who chooses adapters where a request names none."),
    ] = "request"


@hookimpl
def themis_backends() -> list[BackendPlugin]:
    """The numpy reference: slow, plain, and what other backends are compared with."""
    return [
        BackendPlugin(
            name="reference",
            help="A plain numpy Llama, to compare other backends with.",
            settings=ReferenceSettings,
            factory="themis_testkit.reference.backend:create",
        )
    ]
