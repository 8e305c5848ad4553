"""What `backend = "llamacpp"` can be told."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

# The quantised types need flash attention in llama.cpp.
PLAIN_KV_TYPES = ("f32", "f16", "bf16")

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


class LlamaCppSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "llamacpp"`. Raises `ValueError` for values that contradict."""

    path: Annotated[str, msgspec.Meta(min_length=1, description="The model's GGUF file.")]
    context: Annotated[
        int | None,
        msgspec.Meta(
            ge=1,
            le=2**24,
            description="Most tokens of a prompt and its answer together. "
            "Unset: what the model was trained with, as far as the KV cache holds it.",
        ),
    ] = None
    parallel: Annotated[
        int, msgspec.Meta(ge=1, le=256, description="Most requests computed at once.")
    ] = 16
    kv_tokens: Annotated[
        int | None,
        msgspec.Meta(
            ge=1,
            le=2**28,
            description="Tokens that the KV cache holds for all requests together, rounded up "
            "to a multiple of 256. Unset: four contexts (with kv_unified = false: one for each "
            "request), but at most 32768, unless `context` is set and needs more.",
        ),
    ] = None
    kv_unified: Annotated[
        bool,
        msgspec.Meta(
            description="One KV cache for all requests, in which they share prefixes. "
            "false: an equal part for each, quicker where requests share nothing."
        ),
    ] = True
    kv_type: Annotated[
        KvType,
        msgspec.Meta(
            description="Number format of the KV cache. The quantised ones save memory, cost "
            "accuracy and need flash attention."
        ),
    ] = "f16"
    flash_attention: Annotated[
        Literal["auto", "on", "off"],
        msgspec.Meta(description='Use flash attention. "auto": where llama.cpp supports it.'),
    ] = "auto"
    batch_size: Annotated[
        int,
        msgspec.Meta(ge=1, le=65536, description="Most tokens computed in one step."),
    ] = 512
    micro_batch: Annotated[
        int | None,
        msgspec.Meta(
            ge=1,
            le=65536,
            description="Tokens that llama.cpp computes at a time within a step; larger needs "
            "more memory. Unset: batch_size, but at most 512.",
        ),
    ] = None
    prefill_chunk: Annotated[
        int,
        msgspec.Meta(
            ge=1, description="Most prompt tokens computed in one step while others decode."
        ),
    ] = 256
    threads: Annotated[
        int | None,
        msgspec.Meta(
            ge=1,
            le=512,
            description="Threads that compute. Unset: the physical cores that this process may "
            "use, less one for the server where there are more than three.",
        ),
    ] = None
    gpu_layers: Annotated[
        int,
        msgspec.Meta(
            ge=-1,
            description="Layers of the model to compute on a GPU; -1: all. Needs a "
            "llama-cpp-python that was built for that GPU.",
        ),
    ] = 0
    use_mmap: Annotated[
        bool,
        msgspec.Meta(description="Map the file into memory instead of reading it there."),
    ] = True
    use_mlock: Annotated[
        bool,
        msgspec.Meta(description="Forbid the system to swap the model out."),
    ] = False
    rope_freq_base: Annotated[
        float | None,
        msgspec.Meta(gt=0, description="Base frequency of RoPE. Unset: the model's own."),
    ] = None
    rope_freq_scale: Annotated[
        float | None,
        msgspec.Meta(
            gt=0,
            description="Frequency factor of RoPE: 0.5 stretches the trained context to double "
            "its length. Unset: the model's own.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.batch_size < self.parallel:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least parallel ({self.parallel})."
            )
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch ({self.micro_batch}) must be at most batch_size ({self.batch_size})."
            )
        if self.flash_attention == "off" and self.kv_type not in PLAIN_KV_TYPES:
            raise ValueError(
                f'kv_type = "{self.kv_type}" needs flash_attention = "auto" or "on".'
            )
        if self.context is not None and self.kv_tokens is not None:
            least = self.context if self.kv_unified else self.context * self.parallel
            most = self.context * self.parallel
            if not least <= self.kv_tokens <= most:
                raise ValueError(
                    f"kv_tokens ({self.kv_tokens}) must be between {least} and {most}: enough "
                    f"for one context, at most one context for each of {self.parallel} requests."
                    if least < most
                    else f"kv_tokens ({self.kv_tokens}) must be {least}: context × parallel."
                )
