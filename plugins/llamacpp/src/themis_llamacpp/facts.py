"""What kind of model a file holds, as far as it decides how it must be run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from themis_core.errors import ModelLoadFailed
from themis_engine import Pooling
from themis_llamacpp.gguf_header import Header
from themis_llamacpp.native import lib

_POOLING: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}  # llama_pooling_type
_RANK = 4
# Architectures that llama.cpp runs without a KV cache, whatever their header says.
_ENCODERS = frozenset(
    {
        "bert",
        "dream",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llada",
        "llada-moe",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "rnd1",
        "t5encoder",
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """`window` is that of sliding-window attention in tokens, 0 without.

    A `recurrent` model, a hybrid one included, has a state that cannot be cut.
    """

    trained_context: int
    causal: bool
    recurrent: bool
    window: int
    embedding_size: int
    pooling: Pooling


def facts_of(model: Any, header: Header) -> Facts:
    """Ask the model. Raises `ModelLoadFailed` for kinds that cannot be run here."""
    name = header.metadata["general.architecture"]
    if lib.llama_model_has_encoder(model) and lib.llama_model_has_decoder(model):
        raise _unfit(f"{name} models have an encoder and a decoder")
    causal = bool(header.metadata.get(f"{name}.attention.causal", True)) and name not in _ENCODERS
    pooling = header.metadata.get(f"{name}.pooling_type", 0)
    if pooling == _RANK and not causal:
        raise _unfit("it is a reranker, which neither generates nor embeds")
    return Facts(
        trained_context=lib.llama_model_n_ctx_train(model),
        causal=causal,
        recurrent=bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)),
        window=lib.llama_model_n_swa(model),
        embedding_size=0 if pooling == _RANK else lib.llama_model_n_embd_out(model),
        # Where the file does not say it: what is usual for models of that kind.
        pooling=_POOLING.get(pooling, "last" if causal else "mean"),
    )


def _unfit(why: str) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"The llamacpp backend cannot run this model: {why}.",
        remedy="Use a decoder-only model, or an encoder for embeddings.",
        field="path",
        plugin="llamacpp",
    )
