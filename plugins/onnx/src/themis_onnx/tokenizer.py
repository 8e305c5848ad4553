"""Tokenizers of model directories: of decoders as the engine reads them, and of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from themis_core.errors import InvalidRequest, ModelFileInvalid
from themis_engine.hf_tokenizer import HfTokenizer


class DecoderTokenizer(HfTokenizer):
    """As `HfTokenizer`, with the end tokens that `genai_config.json` names.

    Raises `ModelFileInvalid`, naming the file, if one is missing or damaged.
    """

    def __init__(self, directory: Path, genai: dict[str, Any]) -> None:
        super().__init__(directory)
        model = genai.get("model")
        declared = model.get("eos_token_id") if isinstance(model, dict) else None
        ids = declared if isinstance(declared, list) else [declared]
        self._ends = super().end_tokens | {i for i in ids if type(i) is int}

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a generation."""
        return self._ends


class EncoderTokenizer:
    """The engine's `Tokenizer` for models that embed: texts in, framed as the model wants them.

    Encoders do not generate, so no token has bytes and none ends anything. Raises
    `ModelFileInvalid`.
    """

    end_tokens: frozenset[int] = frozenset()
    chat_template: str | None = None

    def __init__(self, directory: Path) -> None:
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise _invalid(f"{file} does not exist")
        try:
            self._framed = tokenizers.Tokenizer.from_file(str(file))
            self._plain = tokenizers.Tokenizer.from_file(str(file))
        # The library raises plain `Exception` for whatever it cannot read.
        except Exception as error:
            raise _invalid(f"{file} cannot be read: {error}") from error
        for tokenizer in (self._framed, self._plain):
            # Files fix lengths for training; a text must be neither padded nor cut in silence.
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self._plain.encode_special_tokens = True
        added = self._framed.get_added_tokens_decoder()
        self._special = MappingProxyType(
            {token.content: i for i, token in added.items() if token.special}
        )

    @property
    def template_tokens(self) -> dict[str, str]:
        """None: there is no template."""
        return {}

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The added tokens that the tokenizer calls special, by their text."""
        return self._special

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids with the model's own frame, for instance [CLS] and [SEP].

        Raises `InvalidRequest` for text that is not valid Unicode.
        """
        tokenizer = self._framed if parse_special else self._plain
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=True).ids
        except TypeError as error:
            message = "The text holds a lone surrogate, so it is not valid Unicode."
            raise InvalidRequest(message, field="inputs") from error
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Nothing: encoders write no text."""
        return b""


def _invalid(why: str) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"{why}.",
        field="path",
        remedy="Download the model's directory again, with its tokenizer files.",
        plugin="onnx",
    )
