"""llama.cpp's C API, as far as it is used here. Importing this loads the native library (0.5 s).

llama-cpp-python has no types, and a distribution of the same module name exists that silently
drops options; so the names and fields that are needed are checked when this is loaded.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import Any

from themis_core.errors import ModelLoadFailed
from themis_llamacpp import log

# llama.cpp's threads meet at OpenMP barriers hundreds of times a step. GNU's libgomp spins there
# for a millisecond before it sleeps, so that one other busy process makes a step a hundred times
# slower (docs/decisions/0005). It reads this once, when it is loaded, which is now.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

lib: Any = importlib.import_module("llama_cpp.llama_cpp")

_NAMES = (
    "llama_adapter_lora_free",
    "llama_adapter_lora_init",
    "llama_adapter_lora_p_ctypes",
    "llama_backend_init",
    "llama_batch",
    "llama_context_default_params",
    "llama_decode",
    "llama_encode",
    "llama_free",
    "llama_get_embeddings",
    "llama_get_logits",
    "llama_get_memory",
    "llama_init_from_model",
    "llama_log_callback",
    "llama_log_set",
    "llama_memory_seq_cp",
    "llama_memory_seq_pos_max",
    "llama_memory_seq_pos_min",
    "llama_memory_seq_rm",
    "llama_model_chat_template",
    "llama_model_default_params",
    "llama_model_desc",
    "llama_model_free",
    "llama_model_get_vocab",
    "llama_model_has_decoder",
    "llama_model_has_encoder",
    "llama_model_is_hybrid",
    "llama_model_is_recurrent",
    "llama_model_load_from_file",
    "llama_model_n_ctx_train",
    "llama_model_n_embd_out",
    "llama_model_n_params",
    "llama_model_n_swa",
    "llama_model_size",
    "llama_n_batch",
    "llama_n_ctx",
    "llama_n_ctx_seq",
    "llama_print_system_info",
    "llama_set_adapters_lora",
    "llama_set_embeddings",
    "llama_state_seq_get_data",
    "llama_state_seq_get_size",
    "llama_state_seq_set_data",
    "llama_supports_gpu_offload",
    "llama_token_to_piece",
    "llama_tokenize",
    "llama_vocab_bos",
    "llama_vocab_eos",
    "llama_vocab_get_attr",
    "llama_vocab_get_add_bos",
    "llama_vocab_get_add_eos",
    "llama_vocab_get_add_sep",
    "llama_vocab_get_text",
    "llama_vocab_is_eog",
    "llama_vocab_n_tokens",
    "llama_vocab_sep",
    "LLAMA_LOAD_MODE_MLOCK",
    "LLAMA_LOAD_MODE_MMAP",
    "LLAMA_LOAD_MODE_MMAP_MLOCK",
    "LLAMA_LOAD_MODE_NONE",
    "LLAMA_POOLING_TYPE_NONE",
    "LLAMA_TOKEN_ATTR_BYTE",
    "LLAMA_TOKEN_ATTR_NORMAL",
)
_FIELDS = {
    "llama_model_params": ("n_gpu_layers", "load_mode", "check_tensors"),
    "llama_context_params": (
        "n_ctx",
        "n_batch",
        "n_ubatch",
        "n_seq_max",
        "n_outputs_max",
        "n_outputs_max_per_seq",
        "n_threads",
        "n_threads_batch",
        "flash_attn_type",
        "pooling_type",
        "swa_full",
        "type_k",
        "type_v",
        "kv_unified",
    ),
    "llama_batch": ("n_tokens", "token", "pos", "n_seq_id", "seq_id", "logits"),
}

_lock = threading.Lock()
_callback: Any = None


def initialise() -> None:
    """Once per process: check the library, take its log, start its backends."""
    global _callback
    # Held across native calls: they are short, call nothing back, and must happen once.
    with _lock:
        if _callback is not None:
            return
        missing = [name for name in _NAMES if not hasattr(lib, name)]
        for struct, fields in _FIELDS.items():
            known = {field[0] for field in getattr(lib, struct)._fields_}
            missing += [f"{struct}.{name}" for name in fields if name not in known]
        if missing:
            raise ModelLoadFailed(
                f"The installed llama_cpp lacks {', '.join(missing)}.",
                remedy="Install llama-cpp-python in the version that themis-llamacpp requires.",
                plugin="llamacpp",
            )
        callback = lib.llama_log_callback(log.receive)
        lib.llama_log_set(callback, None)
        lib.llama_backend_init()
        _callback = callback  # Kept for ever: the library calls it at any time.
