"""The settings of a llama.cpp model: each one reaches llama.cpp or the engine."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_PARALLEL = 256  # llama.cpp's LLAMA_MAX_SEQ

Tokens = Annotated[int, Meta(ge=8)]
Count = Annotated[int, Meta(ge=1)]
KvType = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class LlamaCppSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GGUF model."""

    path: Annotated[str, Meta(min_length=1, description="The GGUF file.")]
    context: Annotated[
        Tokens | None, Meta(description="Most tokens of one sequence; default: as trained.")
    ] = None
    parallel: Annotated[
        int, Meta(ge=1, le=MAX_PARALLEL, description="Most sequences computed at once.")
    ] = 16
    kv_tokens: Annotated[
        Tokens | None, Meta(description="KV cache over all sequences; default: 4 contexts.")
    ] = None
    kv_unified: Annotated[
        bool,
        Meta(
            description="One KV cache that all sequences share, so that prefixes can be shared; "
            "false gives each sequence a part of its own, which is faster when nothing is shared."
        ),
    ] = True
    kv_type: Annotated[KvType, Meta(description="How the KV cache is stored.")] = "f16"
    threads: Annotated[
        Count | None, Meta(description="Threads of the computation; default: by the cores.")
    ] = None
    batch_size: Annotated[
        int, Meta(ge=1, description="Most tokens computed in one step (n_batch).")
    ] = 512
    micro_batch_size: Annotated[
        int, Meta(ge=1, description="Most tokens computed in one piece (n_ubatch).")
    ] = 512
    prefill_chunk: Annotated[
        int, Meta(ge=1, description="Most prompt tokens in a step in which others decode.")
    ] = 256
    gpu_layers: Annotated[int, Meta(ge=-1, description="Layers on the GPU; -1 for all.")] = 0
    flash_attention: Annotated[
        Literal["auto", "on", "off"], Meta(description="Use flash attention.")
    ] = "auto"
    use_mmap: Annotated[bool, Meta(description="Map the file instead of reading it.")] = True
    use_mlock: Annotated[bool, Meta(description="Keep the model in RAM.")] = False
    check_tensors: Annotated[
        bool, Meta(description="Check all weights for invalid numbers while loading.")
    ] = False

    def __post_init__(self) -> None:
        if self.batch_size < self.parallel:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least parallel ({self.parallel}), "
                "because each sequence adds a token to each step."
            )
        if self.kv_tokens is not None and not self.kv_unified:
            raise ValueError(
                "kv_tokens has no effect with kv_unified = false, which gives each of the "
                "`parallel` sequences a whole context: leave it out, or lower context."
            )
