"""The token loop that local backends share.

Write a `ModelRunner`, and `EngineBackend(load, backend="mine")` makes a `Backend` of it.
"""

from themis_engine.backend import EngineBackend, EngineOptions
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.runner import Batch, Logits, ModelRunner, RunnerInfo, TokenArray, Tokenizer

__all__ = [
    "Batch",
    "ByteTokenizer",
    "EngineBackend",
    "EngineOptions",
    "Logits",
    "ModelRunner",
    "RunnerInfo",
    "TokenArray",
    "Tokenizer",
]
