from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import themis_tiny_model
from themis_core.errors import InvalidRequest, ModelFileInvalid
from themis_engine import Tokenizer
from themis_engine.hf_tokenizer import HfTokenizer
from themis_engine.runner import FramedTokenizer

TINY = HfTokenizer(themis_tiny_model.path("hf"))


def text_of(tokenizer: HfTokenizer, ids: list[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, ids)).decode()


def sentence_piece() -> dict[str, Any]:
    """A tokenizer.json as Llama 2 has it: ▁ for spaces, <0xNN> for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "c", "▁a", "ab", "é"]
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
        "added_tokens": [
            {"id": i, "content": pieces[i], "special": True, **special} for i in range(3)
        ]
        + [{"id": len(pieces), "content": "<call>", "special": False, **special}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": ["▁ a", "a b"],
        },
    }


def write(directory: Path, name: str, content: object) -> None:
    (directory / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    directory = tmp_path_factory.mktemp("llama")
    write(directory, "tokenizer.json", sentence_piece())
    write(
        directory,
        "tokenizer_config.json",
        {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}},
    )
    return HfTokenizer(directory)


def test_it_is_a_tokenizer() -> None:
    assert isinstance(TINY, Tokenizer)


@settings(deadline=None)  # It fails on a busy machine.
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_level_round_trip(text: str) -> None:
    assert text_of(TINY, TINY.encode(text, parse_special=False)) == text


@settings(deadline=None)  # It fails on a busy machine.
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_sentence_piece_round_trip(llama: HfTokenizer, text: str) -> None:
    # The normaliser puts ▁ before a text, and ▁ itself is indistinguishable from a space.
    assert text_of(llama, llama.encode(text, parse_special=False)) == " " + text.replace("▁", " ")


def test_every_byte_has_a_token() -> None:
    singles = {TINY.token_bytes(i) for i in range(1920)}
    assert {bytes([byte]) for byte in range(256)} <= singles


def test_bytes_of_tokens_agree_with_the_library() -> None:
    text = "Grüße, 日本 🎉\n\t x"
    ids = TINY.encode(text, parse_special=False)
    assert TINY._special.decode(ids) == text_of(TINY, ids)


def test_special_tokens_in_text() -> None:
    text = "<|im_start|>user"
    assert TINY.encode(text, parse_special=True)[0] == 1916
    plain = TINY.encode(text, parse_special=False)
    assert 1916 not in plain
    assert text_of(TINY, plain) == text


def test_special_tokens_stand_for_nothing_and_others_for_their_text() -> None:
    assert TINY.token_bytes(1916) == b""
    assert TINY.token_bytes(1918) == b"<tool_call>"
    assert TINY.token_bytes(1_000_000) == TINY.token_bytes(-1) == b""


def test_what_the_bundled_model_declares() -> None:
    assert TINY.end_tokens == {1917}
    assert TINY.template_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    assert TINY.chat_template is not None
    assert "im_start" in TINY.chat_template


def test_start_token_comes_from_the_post_processor_once(llama: HfTokenizer) -> None:
    assert llama.encode("a", parse_special=False) == [1, 263]
    assert llama.encode("<s>a", parse_special=True).count(1) == 1
    assert llama.encode("<s>a", parse_special=False).count(1) == 1
    assert llama.encode("", parse_special=False) == [1]


def test_the_end_of_a_text_comes_from_the_post_processor(llama: HfTokenizer) -> None:
    assert isinstance(llama, FramedTokenizer)
    assert llama.text_end == (2,)
    assert llama.encode("a", parse_special=False)[-1] != 2  # Prompts go on.
    assert TINY.text_end == ()


def test_padding_and_truncation_are_reset(llama: HfTokenizer) -> None:
    assert len(llama.encode("abcabcabcabc", parse_special=False)) > 8


def test_sentence_piece_added_tokens(llama: HfTokenizer) -> None:
    assert llama.token_bytes(1) == b""
    assert llama.token_bytes(3 + 0xE2) == b"\xe2"
    assert llama.token_bytes(266) == b"<call>"
    assert llama.end_tokens == {2}


@pytest.mark.parametrize(("add_bos", "expected"), [(True, [1]), (False, [])])
def test_add_bos_token_is_obeyed(tmp_path: Path, add_bos: bool, expected: list[int]) -> None:
    write(tmp_path, "tokenizer.json", sentence_piece())
    config = {"bos_token": "<s>", "add_bos_token": add_bos}
    write(tmp_path, "tokenizer_config.json", config)
    assert HfTokenizer(tmp_path).encode("", parse_special=True) == expected


def test_end_tokens_of_the_generation_settings_come_first(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.json", sentence_piece())
    write(tmp_path, "config.json", {"eos_token_id": 5})
    assert HfTokenizer(tmp_path).end_tokens == {5}
    write(tmp_path, "generation_config.json", {"eos_token_id": [7, 8]})
    assert HfTokenizer(tmp_path).end_tokens == {7, 8}


def test_chat_templates(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.json", sentence_piece())
    assert HfTokenizer(tmp_path).chat_template is None
    several = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": several})
    assert HfTokenizer(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert HfTokenizer(tmp_path).chat_template == "J"


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match=r"tokenizer\.json does not exist"):
        HfTokenizer(tmp_path)
    for content in ("{", "[]", "{}", '{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ModelFileInvalid, match=r"tokenizer\.json"):
            HfTokenizer(tmp_path)


def test_unknown_decoders_are_refused(tmp_path: Path) -> None:
    declared = sentence_piece()
    declared["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    write(tmp_path, "tokenizer.json", declared)
    with pytest.raises(ModelFileInvalid, match="WordPiece"):
        HfTokenizer(tmp_path)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        TINY.encode("\ud800", parse_special=False)
