"""The GGUF files: headers, and the same weights as the Hugging Face directory."""

from __future__ import annotations

from typing import Any

import pytest

import themis_tiny_model

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors.numpy")

PAIRS = {"gguf-f16": "hf", "gguf-q8_0": "hf", "draft-gguf-f16": "draft-hf"}


def _reader(name: str) -> Any:
    return gguf.GGUFReader(themis_tiny_model.path(name))


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_headers(name: str) -> None:
    reader = _reader(name)
    assert _value(reader, "general.architecture") == "llama"
    assert _value(reader, "llama.context_length") >= 1024
    assert _value(reader, "tokenizer.ggml.model") == "gpt2"
    assert _value(reader, "tokenizer.ggml.pre") == "qwen2"
    assert _value(reader, "tokenizer.ggml.add_bos_token") is False
    tokens = _value(reader, "tokenizer.ggml.tokens")
    assert tokens[_value(reader, "tokenizer.ggml.eos_token_id")] == "<|im_end|>"
    template = (themis_tiny_model.path("hf") / "chat_template.jinja").read_text(encoding="utf-8")
    assert _value(reader, "tokenizer.chat_template") == template


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_weights_are_those_of_the_hugging_face_directory(name: str) -> None:
    weights = safetensors.load_file(themis_tiny_model.path(PAIRS[name]) / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in _reader(name).tensors}
    tolerance = 0.01 if "q8" in name else 0.0
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
    ):
        tensor = tensors[theirs]
        given = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        wanted = weights[ours].astype(np.float32)
        assert np.abs(given - wanted).max() <= tolerance * np.abs(wanted).max()
    assert "output.weight" not in tensors


@pytest.mark.parametrize("name", ["gguf-f16", "draft-gguf-f16"])
def test_query_rows_are_interleaved_for_llama_cpp(name: str) -> None:
    weights = safetensors.load_file(themis_tiny_model.path(PAIRS[name]) / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in _reader(name).tensors}
    heads = _value(_reader(name), "llama.attention.head_count")
    query = weights["model.layers.0.self_attn.q_proj.weight"]
    half = query.shape[0] // heads // 2
    rows = tensors["blk.0.attn_q.weight"].data
    assert np.array_equal(rows[0], query[0])
    assert np.array_equal(rows[1], query[half])
    assert np.array_equal(rows[2], query[1])


@pytest.mark.parametrize("adapter", ["german", "json"])
def test_adapters(adapter: str) -> None:
    reader = _reader(f"lora-{adapter}-gguf")
    assert _value(reader, "general.type") == "adapter"
    assert _value(reader, "adapter.type") == "lora"
    assert _value(reader, "adapter.lora.alpha") == 16.0
    names = {tensor.name for tensor in reader.tensors}
    assert all(name.endswith((".lora_a", ".lora_b")) for name in names)
    assert {n.replace(".lora_a", ".lora_b") for n in names} == {n for n in names if "lora_b" in n}
