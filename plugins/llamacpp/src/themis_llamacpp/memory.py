"""How much memory a model will need, from its header and settings; nothing native is loaded."""

from __future__ import annotations

from typing import Any

from themis_core.errors import ModelLoadFailed
from themis_llamacpp.gguf_header import Header
from themis_llamacpp.machine import memory_limit
from themis_llamacpp.settings import MAX_SEQUENCES, LlamaCppSettings

_DEFAULT_CONTEXTS = 4
_DEFAULT_TOKENS = 32_768  # Beyond one context, models made for 128k tokens would take too much.
# Bytes of one number in the KV cache.
_BYTES = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32}
_BYTES["q4_0"] = 18 / 32


def check_memory(header: Header, settings: LlamaCppSettings) -> None:
    """Refuse what cannot fit: the system grants the memory at first, and then ends the process.

    Raises `ModelLoadFailed`.
    """
    available = memory_limit()
    tokens, needed = kv_cache(header, settings)
    if available is None or settings.gpu_layers or needed <= available:
        return
    raise ModelLoadFailed(
        f"A KV cache of {tokens} tokens needs {needed / 2**30:.1f} GiB, but there are only "
        f"{available / 2**30:.1f} GiB of memory.",
        field="kv_tokens",
        remedy="Lower kv_tokens, context or parallel, or choose a smaller kv_type.",
        plugin="llamacpp",
    )


def kv_cache(header: Header, settings: LlamaCppSettings) -> tuple[int, float]:
    """Tokens and bytes of the KV cache; 0 bytes where the header does not tell enough."""
    prefix = header.metadata["general.architecture"]
    trained = header.metadata.get(f"{prefix}.context_length")
    # A header without a plain number there is left to llama.cpp.
    context = settings.context or (trained if type(trained) is int else 0)
    kept = settings.prefix_sequences or 0
    tokens = kv_tokens(settings, context, min(settings.parallel + kept, MAX_SEQUENCES))
    return tokens, tokens * _bytes_per_token(header.metadata, settings.kv_type)


def kv_tokens(settings: LlamaCppSettings, context: int, sequences: int) -> int:
    """KV cells in all. A split cache needs a whole context for each sequence."""
    if not settings.kv_unified:
        return context * sequences
    several = context * min(settings.parallel, _DEFAULT_CONTEXTS)
    return settings.kv_tokens or min(several, max(context, _DEFAULT_TOKENS))


def _bytes_per_token(metadata: dict[str, Any], kv_type: str) -> float:
    """Bytes of KV cache for one token; 0 where the header does not say it in plain numbers."""
    prefix = metadata["general.architecture"]

    def number(name: str) -> int:
        value = metadata.get(f"{prefix}.{name}")
        # An array has a value for each layer: such models are left to llama.cpp.
        return value if type(value) is int else 0

    heads = number("attention.head_count")
    width = number("embedding_length") // heads if heads else 0
    key, value = number("attention.key_length"), number("attention.value_length")
    numbers = (key or width) + (value or width)
    return number("block_count") * number("attention.head_count_kv") * numbers * _BYTES[kv_type]
