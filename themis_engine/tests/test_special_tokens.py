"""`Tokenizer.special_tokens`: what has a text and stands for nothing."""

from __future__ import annotations

import pytest

from themis_engine import ByteTokenizer, Tokenizer
from themis_tiny_model import path


def test_those_of_a_hugging_face_directory() -> None:
    pytest.importorskip("tokenizers")
    from themis_engine.hf_tokenizer import HfTokenizer

    tokenizer = HfTokenizer(path("hf"))
    assert isinstance(tokenizer, Tokenizer)
    special = tokenizer.special_tokens
    assert {"<|im_start|>", "<|im_end|>"} <= special.keys()
    assert "<tool_call>" not in special  # It is one token, and text.
    for text, token in special.items():
        assert tokenizer.encode(text, parse_special=True) == [token]
        assert tokenizer.token_bytes(token) == b""
    silent = {token for token in range(1920) if not tokenizer.token_bytes(token)}
    assert set(special.values()) == silent
    with pytest.raises(TypeError):
        special["<more>"] = 1  # type: ignore[index]


def test_bytes_have_none() -> None:
    tokenizer = ByteTokenizer()
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.special_tokens == {}
