"""Writes Hugging Face directories: the model for transformers and vLLM, the adapters for PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from .chat import END, PAD, template_text
from .export_gguf import Weights
from .settings import LORA_ALPHA, LORA_RANK, LORA_TARGETS, ModelSize
from .tokenizer import CONTROL


def write_model(folder: Path, weights: Weights, size: ModelSize, tokenizer: Tokenizer) -> None:
    """Writes weights (float16), configuration, tokenizer and chat template into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": weight.astype(np.float16) for name, weight in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    ends = {"bos_token_id": pad, "eos_token_id": end, "pad_token_id": pad}
    _write_json(folder / "config.json", _config(size) | ends)
    _write_json(
        folder / "generation_config.json", ends | {"do_sample": False, "max_new_tokens": 256}
    )
    (folder / "chat_template.jinja").write_text(template_text(), encoding="utf-8")
    added = tokenizer.get_added_tokens_decoder()
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": size.context,
            "bos_token": PAD,
            "eos_token": END,
            "pad_token": PAD,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(index): {
                    "content": token.content,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": token.content in CONTROL,
                }
                for index, token in sorted(added.items())
            },
            "chat_template": template_text(),
        },
    )


def write_adapter(folder: Path, weights: Weights) -> None:
    """Writes a LoRA adapter as PEFT reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.model.{name}": weight.astype(np.float16)
        for name, weight in weights.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "themis-tiny",
            "r": LORA_RANK,
            "lora_alpha": LORA_ALPHA,
            "lora_dropout": 0.0,
            "target_modules": list(LORA_TARGETS),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "use_rslora": False,
            "modules_to_save": None,
        },
    )


def _config(size: ModelSize) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": size.context,
        "rms_norm_eps": size.rms_eps,
        "rope_theta": size.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "float16",
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
