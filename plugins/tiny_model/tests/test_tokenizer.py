"""The tokenizer: it loses nothing, and llama.cpp cuts text as it does."""

from __future__ import annotations

from typing import Any

import pytest

import themis_tiny_model

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "What is the capital of France?",
    "Grüße aus Köln, Äpfel, Öl und Übermut: süß!",
    "emoji 😀 👩‍👩‍👧 🇩🇪 and 汉字, عربي, हिन्दी",
    "def f(x):\n    return x ** 2  # two\n\n\n",
    "1234567 3.14 1,000 0x1F",
    "a  b   c \n \n d\t\te",
    "I'm, you're, he'll, WE'LL, it'S",
    "  leading and trailing  ",
    "\r\n\r\nx",
    "e\u0301 \u00a0 \u2003 \u2013 „Zitat“ …",
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>',
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers.Tokenizer.from_file(str(themis_tiny_model.path("hf") / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens(tokenizer: Any) -> None:
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"):
        assert len(tokenizer.encode(token).ids) == 1
    ids = tokenizer.encode("<tool_call>x</tool_call><|im_end|>").ids
    assert tokenizer.decode(ids) == "<tool_call>x</tool_call>"


def test_no_token_is_added(tokenizer: Any) -> None:
    assert tokenizer.encode("").ids == []


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert len(tokenizer.encode("8765").ids) == 4


def test_llama_cpp_gives_the_same_ids(tokenizer: Any) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = str(themis_tiny_model.path("gguf-f16"))
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    for text in TEXTS:
        ids = model.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == tokenizer.encode(text).ids
