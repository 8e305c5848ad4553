"""The settings of an ONNX model: each one reaches ONNX Runtime or the engine."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Tokens = Annotated[int, Meta(ge=8)]
Count = Annotated[int, Meta(ge=1)]
Text = Annotated[str, Meta(min_length=1)]


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter with what is known of it."""

    path: Annotated[str, Meta(min_length=1, description="The adapter's PEFT directory.")]
    description: Annotated[str, Meta(description="What it is good for.")] = ""


class OnnxSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model directory."""

    path: Annotated[
        str, Meta(min_length=1, description="The model's directory, or an .onnx file in one.")
    ]
    variant: Annotated[
        Text | None,
        Meta(
            description="Which of several files, for instance q4, fp16, quantized, or a folder; "
            "default: the smallest that computes well on the provider.",
        ),
    ] = None
    provider: Annotated[
        str,
        Meta(
            min_length=1,
            description="What computes: cpu, cuda, or the full name of an execution provider.",
        ),
    ] = "cpu"
    context: Annotated[
        Tokens | None, Meta(description="Most tokens of one sequence; default: as trained.")
    ] = None
    parallel: Annotated[int, Meta(ge=1, le=256, description="Most sequences computed at once.")] = (
        16
    )
    kv_tokens: Annotated[
        Tokens | None,
        Meta(
            description="KV cache over all sequences; default: 4 contexts, but beyond one context "
            "no more than 32,768 tokens."
        ),
    ] = None
    kv_step: Annotated[
        int,
        Meta(ge=8, description="The KV cache's buffers grow to a multiple of so many tokens."),
    ] = 256
    prefix_cache: Annotated[
        bool, Meta(description="Keep what was computed for prompts that begin alike.")
    ] = True
    prefix_sequences: Annotated[
        Annotated[int, Meta(ge=0, le=256)] | None,
        Meta(
            description="How many more sequences can be kept for their prefixes, beside those that "
            "run; default: 16.",
        ),
    ] = None
    adapters: Annotated[
        dict[str, str | AdapterFile],
        Meta(
            description="LoRA adapters by name: a PEFT directory, or a table of path and "
            "description."
        ),
    ] = {}
    speculation: Annotated[
        Literal["off", "lookup", "draft"],
        Meta(
            description="Guess several tokens ahead and verify them together: by looking them up "
            "in the prompt, or with a small draft model."
        ),
    ] = "off"
    draft_path: Annotated[Text | None, Meta(description="The draft model's directory.")] = None
    draft_tokens: Annotated[int, Meta(ge=1, le=64, description="Most tokens guessed at once.")] = 8
    pooling: Annotated[
        Literal["mean", "cls", "last"] | None,
        Meta(description="How embeddings are pooled; default: as the directory says."),
    ] = None
    threads: Annotated[
        Count | None, Meta(description="Threads of the computation; default: by the cores.")
    ] = None
    batch_size: Annotated[int, Meta(ge=1, description="Most tokens computed in one step.")] = 512
    micro_batch_size: Annotated[
        int, Meta(ge=1, description="Most prompt tokens computed in one piece.")
    ] = 64
    prefill_chunk: Annotated[
        Count | None,
        Meta(description="Most prompt tokens of a step; default: so many that it takes 100 ms."),
    ] = None

    def __post_init__(self) -> None:
        needed = self.parallel + (self.prefix_sequences or 0)
        if self.batch_size < self.parallel:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least parallel ({self.parallel}), "
                "because each sequence can add a token to a step."
            )
        if needed > 512:
            raise ValueError(f"parallel and prefix_sequences make {needed}; at most are 512.")
        if self.speculation == "draft" and self.draft_path is None:
            raise ValueError('speculation = "draft" needs draft_path, a small model\'s directory.')
        if self.speculation != "draft" and self.draft_path is not None:
            raise ValueError(
                f'draft_path has no effect with speculation = "{self.speculation}": '
                'leave it out, or set speculation = "draft".'
            )
        if self.prefix_sequences and not self.prefix_cache:
            raise ValueError(
                "prefix_sequences has no effect with prefix_cache = false: leave it out."
            )
