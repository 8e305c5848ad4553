"""The token loop that local backends share.

Write a `ModelRunner`, and `EngineBackend(load, backend="mine")` makes a `Backend` of it.
"""

from themis_engine.backend import EngineBackend
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.options import AdapterFile, EngineOptions
from themis_engine.runner import (
    AdapterRunner,
    Batch,
    EmbeddingRunner,
    FramedTokenizer,
    InterruptibleRunner,
    Logits,
    ModelRunner,
    Pooling,
    RunnerInfo,
    StateRunner,
    StepInterrupted,
    TokenArray,
    Tokenizer,
)

__all__ = [
    "AdapterFile",
    "AdapterRunner",
    "Batch",
    "ByteTokenizer",
    "EmbeddingRunner",
    "EngineBackend",
    "EngineOptions",
    "FramedTokenizer",
    "InterruptibleRunner",
    "Logits",
    "ModelRunner",
    "Pooling",
    "RunnerInfo",
    "StateRunner",
    "StepInterrupted",
    "TokenArray",
    "Tokenizer",
]
