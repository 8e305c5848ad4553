"""Makes the models that are measured, in the shape of a small real one.

12 layers, a vocabulary of 50,176, and matrices in 4-bit blocks as people use them. The weights of
`random` mean nothing, but the work is real. Those of `copying` are set by hand, so that it
continues a text as it went on before (`copying.py`), with exactly as much work. The same seed gives
the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import gguf
import numpy as np

from benchmarks import copying
from benchmarks.shape import (
    CONTEXT,
    FFN,
    HEAD,
    HEADS,
    HIDDEN,
    LAYER,
    LAYERS,
    ROPE_BASE,
    Matrix,
    random_matrix,
)
from benchmarks.vocabulary import Vocabulary, build, is_plain

Kind = Literal["random", "copying"]

CACHE = Path(__file__).parent / ".cache"
SEED = 20_260
# Raised with every change that changes the file.
VERSIONS: dict[Kind, int] = {"random": 1, "copying": 1}

_CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def ensure(kind: Kind = "random") -> Path:
    """The path of the model, made now if it is not in the cache."""
    path = CACHE / f"{kind}-124m-q4_0-v{VERSIONS[kind]}.gguf"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(partial, kind)
        partial.replace(path)
    return path


def parameters() -> int:
    """Number of weights."""
    layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN + 2 * HIDDEN
    return LAYERS * layer + len(build(SEED).tokens) * HIDDEN + HIDDEN


def _write(path: Path, kind: Kind) -> None:
    vocabulary = build(SEED)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{kind}-124m-q4_0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary.tokens))
    _add_tokenizer(writer, vocabulary)
    _add_weights(writer, vocabulary, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    kinds = [gguf.TokenType.NORMAL] * len(vocabulary.tokens)
    kinds[vocabulary.end] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(vocabulary.end)
    writer.add_eos_token_id(vocabulary.end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(_CHAT)


def _add_weights(writer: gguf.GGUFWriter, vocabulary: Vocabulary, kind: Kind) -> None:
    chance = np.random.default_rng(SEED)

    def add(name: str, values: Matrix, kind: gguf.GGMLQuantizationType) -> None:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))

    # Also the output matrix. A row of zeros is a logit of zero, far below the best of 50,000:
    # so no answer ever ends early, and every token is plain text that can be streamed at once.
    embeddings = random_matrix(chance, len(vocabulary.tokens), HIDDEN)
    if kind == "copying":
        embeddings = copying.embeddings(np.random.default_rng(SEED), len(vocabulary.tokens))
        writer.add_tensor("rope_freqs.weight", copying.rope_factors())
    embeddings[[not is_plain(token) for token in vocabulary.tokens]] = 0.0
    add("token_embd.weight", embeddings, gguf.GGMLQuantizationType.Q8_0)
    add_norm("output_norm.weight")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm.weight")
        add_norm(f"{block}.ffn_norm.weight")
        weights = {name: random_matrix(chance, *shape) for name, shape in LAYER.items()}
        if kind == "copying":
            weights |= copying.layer(layer)
        for name, values in weights.items():
            add(f"{block}.{name}.weight", values, gguf.GGMLQuantizationType.Q4_0)
