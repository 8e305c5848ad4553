"""The settings of a llama.cpp model: each one reaches llama.cpp or the engine."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_SEQUENCES = 256  # llama.cpp's LLAMA_MAX_SEQ

Tokens = Annotated[int, Meta(ge=8)]
Count = Annotated[int, Meta(ge=1)]
Path = Annotated[str, Meta(min_length=1)]
KvType = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter with what is known of it."""

    path: Annotated[str, Meta(min_length=1, description="The adapter's GGUF file.")]
    description: Annotated[
        str, Meta(description="What it is good for, so that it can be chosen by the query.")
    ] = ""


class LlamaCppSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GGUF model."""

    path: Annotated[str, Meta(min_length=1, description="The GGUF file.")]
    context: Annotated[
        Tokens | None, Meta(description="Most tokens of one sequence; default: as trained.")
    ] = None
    parallel: Annotated[
        int, Meta(ge=1, le=MAX_SEQUENCES, description="Most sequences computed at once.")
    ] = 16
    kv_tokens: Annotated[
        Tokens | None,
        Meta(
            description="KV cache over all sequences; default: 4 contexts, but beyond one context "
            "no more than 32,768 tokens."
        ),
    ] = None
    kv_unified: Annotated[
        bool,
        Meta(
            description="One KV cache that all sequences share, so that prefixes can be shared; "
            "false gives each sequence a part of its own, which is faster when nothing is shared."
        ),
    ] = True
    kv_type: Annotated[KvType, Meta(description="How the KV cache is stored.")] = "f16"
    prefix_cache: Annotated[
        bool, Meta(description="Keep what was computed for prompts that begin alike.")
    ] = True
    prefix_sequences: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_SEQUENCES)] | None,
        Meta(
            description="How many more sequences can be kept for their prefixes, beside those that "
            "run; default: 64 with kv_unified (8 for recurrent models), 0 without.",
        ),
    ] = None
    prefix_ram_mib: Annotated[
        int, Meta(ge=0, description="Memory for prefixes that no longer fit in the KV cache.")
    ] = 0
    prefix_disk: Annotated[
        Path | None, Meta(description="A folder in which prefixes are kept.")
    ] = None
    prefix_disk_mib: Annotated[int, Meta(ge=1, description="Most that is kept in that folder.")] = (
        4096
    )
    adapters: Annotated[
        dict[str, str | AdapterFile],
        Meta(description="LoRA adapters by name: a GGUF file, or a table of path and description."),
    ] = {}
    adapter_choice: Annotated[
        Literal["request", "query"],
        Meta(
            description="Who chooses the adapters: the request, or where it names none, "
            "their descriptions and the query."
        ),
    ] = "request"
    speculation: Annotated[
        Literal["off", "lookup", "draft"],
        Meta(
            description="Guess several tokens ahead and verify them together: by looking them up "
            "in the prompt, or with a small draft model."
        ),
    ] = "off"
    draft_path: Annotated[Path | None, Meta(description="The draft model's GGUF file.")] = None
    draft_tokens: Annotated[int, Meta(ge=1, le=64, description="Most tokens guessed at once.")] = 8
    pooling: Annotated[
        Literal["mean", "cls", "last"] | None,
        Meta(description="How embeddings are pooled; default: as trained."),
    ] = None
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
        Count | None,
        Meta(description="Most prompt tokens of a step; default: so many that it takes 100 ms."),
    ] = None
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
        needed = self.parallel + (self.prefix_sequences or 0)
        if self.batch_size < needed:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least parallel and prefix_sequences "
                f"together ({needed}), because each sequence can add a token to a step."
            )
        if self.kv_tokens is not None and not self.kv_unified:
            raise ValueError(
                "kv_tokens has no effect with kv_unified = false, which gives each "
                "sequence a whole context: leave it out, or lower context."
            )
        if needed > MAX_SEQUENCES:
            raise ValueError(
                f"parallel ({self.parallel}) and prefix_sequences ({self.prefix_sequences}) make "
                f"more than llama.cpp's {MAX_SEQUENCES} sequences: lower one of them."
            )
        if self.speculation == "draft" and self.draft_path is None:
            raise ValueError('speculation = "draft" needs draft_path, a small model\'s GGUF file.')
        if self.speculation != "draft" and self.draft_path is not None:
            raise ValueError(
                f'draft_path has no effect with speculation = "{self.speculation}": '
                'leave it out, or set speculation = "draft".'
            )
        for name in ("prefix_sequences", "prefix_ram_mib", "prefix_disk"):
            if getattr(self, name) and not self.prefix_cache:
                raise ValueError(f"{name} has no effect with prefix_cache = false: leave it out.")
