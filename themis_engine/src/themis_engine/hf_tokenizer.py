"""The tokenizer of an unmodified Hugging Face model directory, through the `tokenizers` library.

Needs the extra `themis-engine[hf]`; the rest of the engine never imports this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from themis_core.errors import InvalidRequest, ModelFileInvalid

_REMEDY = "Download the model's directory again, with its tokenizer files."
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class HfTokenizer:
    """The engine's `Tokenizer` protocol over `tokenizer.json` and the files beside it.

    Reads `tokenizer_config.json` (chat template, start and end tokens), `chat_template.jinja`,
    `generation_config.json` and `config.json` (end tokens) where they exist. Raises
    `ModelFileInvalid`, naming the file, if one is missing, damaged or of an unknown kind.
    """

    def __init__(self, directory: Path) -> None:
        file = directory / "tokenizer.json"
        declared = _read_json(file, required=True)
        # Two instances: switching one between the modes would be seen by other threads.
        self._special = _load(file)
        self._plain = _load(file)
        self._plain.encode_special_tokens = True
        config = _read_json(directory / "tokenizer_config.json")
        self._template_tokens = {
            name: text
            for name in ("bos_token", "eos_token")
            if (text := _token_text(config.get(name))) is not None
        }
        self._chat_template = _chat_template(directory, config)
        framed_start, self._text_end = self._frame()
        self._start = self._start_tokens(config.get("add_bos_token"), framed_start)
        self._end_tokens = self._find_end_tokens(directory)
        self._bytes = self._byte_table(_piece_reader(file, declared))
        vocabulary = self._special.get_vocab(with_added_tokens=True)
        self._special_tokens = MappingProxyType(
            {text: token for text, token in vocabulary.items() if text and not self._bytes[token]}
        )

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a generation, as the generation and tokenizer settings declare them."""
        return self._end_tokens

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, if the directory has one."""
        return self._chat_template

    @property
    def template_tokens(self) -> dict[str, str]:
        """`bos_token` and `eos_token`, those that are declared."""
        return dict(self._template_tokens)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The added tokens that the tokenizer calls special, by their text."""
        return self._special_tokens

    @property
    def text_end(self) -> tuple[int, ...]:
        """What the post-processor puts behind a text, which a text to embed needs.

        A prompt must not have it: nothing would follow.
        """
        return self._text_end

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of `text`, with the model's start tokens, which are never added twice.

        Raises `InvalidRequest` for text that cannot be encoded in UTF-8 (lone surrogates).
        """
        tokenizer = self._special if parse_special else self._plain
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            message = "The text holds a lone surrogate, so it is not valid Unicode."
            raise InvalidRequest(message, field="prompt") from error
        start = self._start
        if parse_special and ids[: len(start)] == start:
            return ids
        return start + ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; none for special tokens and for ids that the vocabulary lacks.

        Models often have more embeddings than tokens; those ids stand for nothing.
        """
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def _frame(self) -> tuple[list[int], tuple[int, ...]]:
        """What the post-processor puts before a text, and behind it."""
        plain = self._special.encode("a", add_special_tokens=False).ids
        framed = self._special.encode("a", add_special_tokens=True).ids
        places = (i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
        before = next(places, None)
        if before is None:  # It changes the text itself, so what is its frame cannot be told.
            return [], ()
        return list(framed[:before]), tuple(framed[before + len(plain) :])

    def _start_tokens(self, add_bos: Any, framed: list[int]) -> list[int]:
        """What precedes every text: as `add_bos_token` says, or else as the post-processor does."""
        if add_bos is None:
            return framed
        bos = self._special.token_to_id(self._template_tokens.get("bos_token", ""))
        return [bos] if add_bos and bos is not None else []

    def _find_end_tokens(self, directory: Path) -> frozenset[int]:
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            declared = _read_json(directory / name).get("eos_token_id")
            ids = declared if isinstance(declared, list) else [declared]
            found.update(i for i in ids if isinstance(i, int))
            # The generation settings are made for generating; config.json only stands in for them.
            if found:
                break
        eos = self._special.token_to_id(self._template_tokens.get("eos_token", ""))
        return frozenset(found if eos is None else found | {eos})

    def _byte_table(self, read: Callable[[str], bytes]) -> list[bytes]:
        table = [b""] * (max(self._special.get_vocab(with_added_tokens=True).values()) + 1)
        for piece, token in self._special.get_vocab(with_added_tokens=False).items():
            table[token] = read(piece)
        for token, added in self._special.get_added_tokens_decoder().items():
            # Added tokens are matched as plain text, so most stand for themselves. Only ▁, which
            # some vocabularies add in runs, is written for a space; `read` knows whether it is.
            table[token] = b"" if added.special else _added_bytes(added.content, read)
        return table


def _added_bytes(content: str, read: Callable[[str], bytes]) -> bytes:
    return read(content) if set(content) == {"▁"} else content.encode()


def _piece_reader(file: Path, declared: dict[str, Any]) -> Callable[[str], bytes]:
    """How vocabulary entries stand for bytes: as the decoder, or else the pre-tokenizer, says."""
    parts = _flatten(declared.get("decoder"), "decoders")
    parts = parts or _flatten(declared.get("pre_tokenizer"), "pretokenizers")
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        return _byte_level_bytes
    spaces = {space for part in parts if (space := _space_sign(part)) is not None}
    if len(spaces) == 1:
        space = spaces.pop()
        fallback = "ByteFallback" in kinds or bool(declared["model"].get("byte_fallback"))
        return lambda piece: _sentence_piece_bytes(piece, space, fallback)
    raise ModelFileInvalid(
        f"{file} declares a tokenizer whose tokens have no known bytes "
        f"(decoder: {', '.join(sorted(map(str, kinds))) or 'none'}).",
        remedy="Use a model with a byte-level BPE or SentencePiece tokenizer.",
    )


def _flatten(part: Any, children: str) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [leaf for child in part[children] for leaf in _flatten(child, children)]
    return [part]


def _space_sign(part: dict[str, Any]) -> str | None:
    """The character that this part of a decoder turns into a space, if it does that."""
    if part.get("type") == "Metaspace":
        return str(part.get("replacement", "▁"))
    if part.get("type") == "Replace" and part.get("content") == " ":
        pattern = part.get("pattern")
        return pattern.get("String") if isinstance(pattern, dict) else None
    return None


def _byte_alphabet() -> dict[str, int]:
    """Character → byte. GPT-2 writes each byte as a printable character: those that Latin-1
    prints as themselves, the other 68 as U+0100 onwards (Radford et al. 2019, `encoder.py`).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    try:
        return bytes([_BYTE_ALPHABET[character] for character in piece])
    except KeyError:  # An entry written as plain text, as the library's own decoder reads it.
        return piece.encode()


def _sentence_piece_bytes(piece: str, space: str, fallback: bool) -> bytes:
    match = _BYTE_TOKEN.fullmatch(piece) if fallback else None
    return bytes([int(match[1], 16)]) if match else piece.replace(space, " ").encode()


def _load(file: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    # The library raises plain `Exception` for whatever it cannot read.
    except Exception as error:
        message = f"{file} is no tokenizer that the tokenizers library can read: {error}."
        raise ModelFileInvalid(message, remedy=_REMEDY) from error
    # Some files fix a length for training; a prompt must be neither padded nor cut.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_json(file: Path, *, required: bool = False) -> dict[str, Any]:
    """The object in a file; {} if it does not exist and need not."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not required:
            return {}
        raise ModelFileInvalid(f"{file} does not exist.", remedy=_REMEDY) from error
    except (OSError, ValueError) as error:
        raise ModelFileInvalid(f"{file} cannot be read: {error}.", remedy=_REMEDY) from error
    if not isinstance(content, dict):
        raise ModelFileInvalid(f"{file} holds no JSON object.", remedy=_REMEDY)
    return content


def _token_text(declared: Any) -> str | None:
    """A token is declared as its text, or as an object that has the text as `content`."""
    text = declared.get("content") if isinstance(declared, dict) else declared
    return text if isinstance(text, str) else None


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelFileInvalid(f"{file} cannot be read: {error}.", remedy=_REMEDY) from error
    declared = config.get("chat_template")
    if isinstance(declared, list):  # Several, by name; the one for chatting is `default`.
        named = [t for t in declared if isinstance(t, dict) and t.get("name") == "default"]
        declared = named[0].get("template") if named else None
    return declared if isinstance(declared, str) else None
