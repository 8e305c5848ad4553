"""What the test kit offers to Themis: the backend `reference`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from themis_core.hooks import BackendPlugin, hookimpl


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
