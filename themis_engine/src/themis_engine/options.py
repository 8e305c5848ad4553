"""How the engine works; backends built on it have these among their own settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from themis_engine.runner import Pooling


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter that is loaded with the model. `description` is for choosing by the query."""

    path: Annotated[str, Meta(min_length=1)]
    description: str = ""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the engine works. The defaults suit a server."""

    parallel: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Most sequences computed at once; default: all ids of the runner."),
    ] = None
    prefill_chunk: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Most prompt tokens of a step; default: so many that it takes 100 ms."),
    ] = None
    prefix_cache: Annotated[
        bool, Meta(description="Keep what was computed for prompts that begin alike.")
    ] = True
    prefix_ram_mib: Annotated[
        int, Meta(ge=0, description="RAM for prefixes that had to leave the KV cache; 0: none.")
    ] = 0
    prefix_disk: Annotated[
        str | None, Meta(description="Folder for such prefixes; they come back after a restart.")
    ] = None
    prefix_disk_mib: Annotated[int, Meta(ge=1, description="Most that is kept in that folder.")] = (
        4096
    )
    speculation: Annotated[
        Literal["off", "lookup", "draft"],
        Meta(description="Guess tokens: from the text itself, or with a draft model."),
    ] = "off"
    draft_tokens: Annotated[
        int, Meta(ge=1, le=64, description="Most tokens guessed at once for a sequence.")
    ] = 8
    adapters: Annotated[
        dict[str, str | AdapterFile], Meta(description="LoRA adapters to load, by name.")
    ] = {}
    adapter_choice: Annotated[
        Literal["request", "query"],
        Meta(
            description="Who chooses adapters where a request names none: nobody, or the query, by "
            "its likeness to the adapters' descriptions."
        ),
    ] = "request"
    pooling: Annotated[
        Pooling | None, Meta(description="How embeddings are pooled; default: as trained.")
    ] = None
