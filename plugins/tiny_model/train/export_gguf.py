"""Writes GGUF files: whole models as F16 or Q8_0, and LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer

from .chat import END, PAD, template_text
from .settings import LORA_ALPHA, ModelSize
from .tokenizer import CONTROL, PRE_TOKENIZER_NAME, VISIBLE

Array = np.ndarray
Weights = dict[str, Array]

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """``layers.2.mlp.up_proj.weight`` → ``blk.2.ffn_up.weight``, and so on."""
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def interleave(rows: Array, heads: int) -> Array:
    """Reorders the output rows of a q or k projection for llama.cpp.

    Hugging Face rotates the pairs (i, i + d/2) of a head; llama.cpp's ``llama`` architecture
    rotates neighbours (2i, 2i + 1). Moving the rows makes the two agree.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def for_llama_cpp(name: str, rows: Array, size: ModelSize) -> Array:
    """A weight (or a LoRA B matrix) in the row order that llama.cpp expects."""
    if ".q_proj." in name:
        return interleave(rows, size.heads)
    if ".k_proj." in name:
        return interleave(rows, size.kv_heads)
    return rows


def write_model(
    path: Path, weights: Weights, size: ModelSize, tokenizer: Tokenizer, quantised: bool
) -> None:
    """Writes the model with its tokenizer and chat template; norms stay float32."""
    writer = gguf.GGUFWriter(path, "llama")
    file_type = gguf.LlamaFileType.MOSTLY_Q8_0 if quantised else gguf.LlamaFileType.MOSTLY_F16
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(size.name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(size.context)
    writer.add_embedding_length(size.hidden)
    writer.add_block_count(size.layers)
    writer.add_feed_forward_length(size.ffn)
    writer.add_head_count(size.heads)
    writer.add_head_count_kv(size.kv_heads)
    writer.add_key_length(size.head_dim)
    writer.add_value_length(size.head_dim)
    writer.add_rope_dimension_count(size.head_dim)
    writer.add_rope_freq_base(size.rope_theta)
    writer.add_layer_norm_rms_eps(size.rms_eps)
    writer.add_vocab_size(size.vocab)
    _write_tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        data = for_llama_cpp(name, weight, size)
        if data.ndim == 1:
            writer.add_tensor(gguf_name(name), data.astype(np.float32))
        elif quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(data.astype(np.float32), kind)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), data.astype(np.float16))
    _finish(writer)


def write_adapter(path: Path, name: str, weights: Weights, size: ModelSize) -> None:
    """Writes a LoRA adapter; ``weights`` maps ``<module>.lora_A|lora_B.weight`` to matrices."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, LORA_ALPHA)
    for key, weight in weights.items():
        module, part, _ = key.rsplit(".", 2)
        if part == "lora_B":
            weight = for_llama_cpp(f"{module}.", weight, size)
        suffix = {"lora_A": "lora_a", "lora_B": "lora_b"}[part]
        target = gguf_name(f"{module}.weight")
        writer.add_tensor(f"{target}.{suffix}", weight.astype(np.float16))
    _finish(writer)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary]
    kinds = dict.fromkeys(CONTROL, gguf.TokenType.CONTROL)
    kinds |= dict.fromkeys(VISIBLE, gguf.TokenType.USER_DEFINED)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER_NAME)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(PAD))
    writer.add_eos_token_id(tokenizer.token_to_id(END))
    writer.add_eot_token_id(tokenizer.token_to_id(END))
    writer.add_pad_token_id(tokenizer.token_to_id(PAD))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(template_text())


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
