"""From settings to a loaded model and its context, or the true cause why not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from themis_core.errors import ModelLoadFailed
from themis_llamacpp import gguf_header, log
from themis_llamacpp.native import initialise, lib
from themis_llamacpp.settings import LlamaCppSettings

_DEFAULT_CONTEXTS = 4
# Bytes of one number in the KV cache.
_BYTES = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32}
_BYTES["q4_0"] = 18 / 32
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type


def load_model(settings: LlamaCppSettings) -> Any:
    """The native model. Raises `ModelFileInvalid` or `ModelLoadFailed`."""
    path = Path(settings.path).expanduser()
    _check_memory(gguf_header.check(path), settings)
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
    return model


def make_context(model: Any, settings: LlamaCppSettings) -> Any:
    """The native context with its KV cache. Raises `ModelLoadFailed`."""
    trained = lib.llama_model_n_ctx_train(model)
    context = settings.context or trained
    if context > trained:
        raise ModelLoadFailed(
            f"context is {context}, but the model was trained for {trained} tokens.",
            field="context",
            remedy=f"Set context to at most {trained}.",
            plugin="llamacpp",
        )
    params = lib.llama_context_default_params()
    params.n_ctx = _kv_tokens(settings, context)
    params.n_batch = settings.batch_size
    params.n_ubatch = min(settings.micro_batch_size, settings.batch_size)
    params.n_seq_max = settings.parallel
    params.n_outputs_max = 0  # No limits but the batch itself:
    params.n_outputs_max_per_seq = 0  # a step may ask for the logits of every position.
    params.n_threads = params.n_threads_batch = settings.threads or default_threads()
    params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
    params.type_k = params.type_v = getattr(lib, f"GGML_TYPE_{settings.kv_type.upper()}")
    params.kv_unified = settings.kv_unified
    log.clear()
    native = lib.llama_init_from_model(model, params)
    if not native:
        raise ModelLoadFailed(
            f"llama.cpp cannot make a context of {params.n_ctx} tokens: {log.reason()}.",
            remedy="A smaller kv_tokens, context or parallel needs less memory.",
            plugin="llamacpp",
        )
    return native


def default_threads() -> int:
    """One thread per core that this process may use; beyond two, one core is left to the rest.

    llama.cpp's threads spin at barriers: with more busy threads than cores, decoding collapses.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores - 1 if cores and cores > 2 else cores or 1)


def _check_memory(header: gguf_header.Header, settings: LlamaCppSettings) -> None:
    """Refuse what cannot fit: the system grants the memory at first, and then ends the process."""
    available = memory_limit()
    prefix = header.metadata["general.architecture"]
    trained = header.metadata.get(f"{prefix}.context_length")
    # A header without a plain number there is left to llama.cpp.
    tokens = _kv_tokens(settings, settings.context or (trained if type(trained) is int else 0))
    needed = tokens * _bytes_per_token(header.metadata, settings.kv_type)
    if available is None or settings.gpu_layers or needed <= available:
        return
    raise ModelLoadFailed(
        f"A KV cache of {tokens} tokens needs {needed / 2**30:.1f} GiB, but there are only "
        f"{available / 2**30:.1f} GiB of memory.",
        field="kv_tokens",
        remedy="Lower kv_tokens, context or parallel, or choose a smaller kv_type.",
        plugin="llamacpp",
    )


def memory_limit() -> int | None:
    """Bytes of memory of the machine, or of the container; None where that is not known."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Not offered by this system.
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:  # No container, or one that does not tell.
        limit = ""
    return min(physical, int(limit)) if limit.isdigit() else physical


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


def _kv_tokens(settings: LlamaCppSettings, context: int) -> int:
    """KV cells in all. A split cache needs a whole context for each sequence."""
    if not settings.kv_unified:
        return context * settings.parallel
    return settings.kv_tokens or context * min(settings.parallel, _DEFAULT_CONTEXTS)
