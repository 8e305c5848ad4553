"""What can be set of this front door, in `[server]` of `themis.toml`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class OpenAISettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the OpenAI-compatible server."""

    api_keys: Annotated[
        tuple[_Text, ...],
        msgspec.Meta(
            description="Keys that requests must bring as a bearer token; none: anybody may ask.",
            extra={"secret": True},
        ),
    ] = ()
    max_body_bytes: Annotated[
        int, msgspec.Meta(ge=1, description="The largest request body, in bytes.")
    ] = 8 * 1024 * 1024
    shutdown_grace: Annotated[
        int,
        msgspec.Meta(ge=0, description="Seconds that running requests get to end at shutdown."),
    ] = 10
    allow_origins: Annotated[
        tuple[_Text, ...],
        msgspec.Meta(description="Web origins whose pages may call the server (CORS); '*': all."),
    ] = ()
    unknown_fields: Annotated[
        Literal["refuse", "report"],
        msgspec.Meta(
            description="What becomes of request fields that nobody knows: an error, or a note in "
            "the response header x-themis-ignored-fields."
        ),
    ] = "refuse"
