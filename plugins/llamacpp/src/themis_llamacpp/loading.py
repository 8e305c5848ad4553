"""From settings to a loaded model and its context, or the true cause why not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from themis_core.errors import ModelLoadFailed
from themis_llamacpp import gguf_header, log
from themis_llamacpp.facts import Facts
from themis_llamacpp.gguf_header import Header
from themis_llamacpp.machine import default_threads
from themis_llamacpp.memory import check_memory, kv_tokens
from themis_llamacpp.native import initialise, lib
from themis_llamacpp.settings import MAX_SEQUENCES, LlamaCppSettings

_PREFIXES = 64
_RECURRENT_PREFIXES = 8  # Each sequence of such a model has a whole state, allocated at once.
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type


def load_model(path: Path, settings: LlamaCppSettings) -> tuple[Any, Header]:
    """The native model, and its header. Raises `ModelFileInvalid` or `ModelLoadFailed`."""
    header = gguf_header.check(path)
    check_memory(header, settings)
    initialise()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    params.check_tensors = settings.check_tensors
    params.load_mode = {
        (False, False): lib.LLAMA_LOAD_MODE_NONE,
        (True, False): lib.LLAMA_LOAD_MODE_MMAP,
        (False, True): lib.LLAMA_LOAD_MODE_MLOCK,
        (True, True): lib.LLAMA_LOAD_MODE_MMAP_MLOCK,
    }[settings.use_mmap, settings.use_mlock]
    if settings.gpu_layers and not lib.llama_supports_gpu_offload():
        raise ModelLoadFailed(
            f"gpu_layers is {settings.gpu_layers}, but this llama.cpp was compiled without a GPU.",
            field="gpu_layers",
            remedy="Compile llama-cpp-python for your GPU, or set gpu_layers to 0.",
            plugin="llamacpp",
        )
    log.clear()
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelLoadFailed(f"llama.cpp cannot load {path}: {log.reason()}.", plugin="llamacpp")
    return model, header


def context_length(facts: Facts, settings: LlamaCppSettings) -> int:
    """Most tokens of one sequence. Raises `ModelLoadFailed` for more than the model knows."""
    trained = facts.trained_context
    if (settings.context or trained) > trained:
        raise ModelLoadFailed(
            f"context is {settings.context}, but the model was trained for {trained} tokens.",
            field="context",
            remedy=f"Set context to at most {trained}.",
            plugin="llamacpp",
        )
    return settings.context or trained


def sequences(facts: Facts, settings: LlamaCppSettings) -> int:
    """Sequence ids: of those that run, and of those that are kept for their prefixes.

    Raises `ModelLoadFailed` for more than a batch has tokens: llama.cpp would end the process.
    """
    if not facts.causal:
        return settings.parallel
    extra = settings.prefix_sequences if settings.prefix_cache else 0
    most = min(MAX_SEQUENCES, settings.batch_size)
    if settings.kv_unified:
        most = min(most, kv_tokens(settings, context_length(facts, settings), 1))
    if has_keepers(facts, settings):
        most //= 2
    needed = settings.parallel + (extra or 0)
    if needed > most:
        raise ModelLoadFailed(
            f"parallel and prefix_sequences make {needed} sequences, but a step of this model "
            f"has at most {most} tokens.",
            field="parallel",
            remedy="Lower parallel or prefix_sequences, or raise kv_tokens or context.",
            plugin="llamacpp",
        )
    if extra is None and settings.kv_unified:
        needed += _RECURRENT_PREFIXES if facts.recurrent else _PREFIXES
    return min(needed, most)


def has_keepers(facts: Facts, settings: LlamaCppSettings) -> bool:
    """True if each sequence id has a second one, which holds the same cells and never runs.

    llama.cpp gives cells that have left a sliding window to others, even while more are free, but
    only those of a single sequence; and then the sequence can be neither cut nor shared in part.
    With a split cache nobody else is in a sequence's way.
    """
    return bool(facts.window) and settings.kv_unified and facts.causal and not facts.recurrent


def make_context(model: Any, facts: Facts, settings: LlamaCppSettings) -> Any:
    """The native context with its KV cache. Raises `ModelLoadFailed`."""
    context = context_length(facts, settings)
    params = lib.llama_context_default_params()
    params.n_seq_max = sequences(facts, settings)
    params.kv_unified = settings.kv_unified or not facts.causal
    params.n_batch = settings.batch_size
    params.n_ubatch = min(settings.micro_batch_size, settings.batch_size)
    params.n_ctx = kv_tokens(settings, context, params.n_seq_max)
    if has_keepers(facts, settings):
        params.n_seq_max *= 2
        params.n_ubatch = params.n_batch  # Within a step, cells have no keeper yet.
    if not facts.causal:
        # Each token looks at all others of its sequence, so it is computed in one piece.
        params.n_batch = params.n_ubatch = params.n_ctx = max(settings.batch_size, context)
    params.n_outputs_max = 0  # No limits but the batch itself:
    params.n_outputs_max_per_seq = 0  # a step may ask for the logits of every position.
    params.n_threads = params.n_threads_batch = settings.threads or default_threads()
    params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
    params.type_k = params.type_v = getattr(lib, f"GGML_TYPE_{settings.kv_type.upper()}")
    # The states of all positions are wanted; the engine makes one vector of them.
    params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    # Sliding-window layers get cells for whole sequences, not for the window only: without this
    # a longer sequence could be neither cut nor shared in part.
    params.swa_full = True
    log.clear()
    native = lib.llama_init_from_model(model, params)
    if not native:
        raise ModelLoadFailed(
            f"llama.cpp cannot make a context of {params.n_ctx} tokens: {log.reason()}.",
            remedy="A smaller kv_tokens, context or parallel needs less memory.",
            plugin="llamacpp",
        )
    return native
