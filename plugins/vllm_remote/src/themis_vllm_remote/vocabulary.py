"""How many token ids a model has: as many as it has embeddings, which can be more than tokens."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers


def vocabulary_of(folder: Path) -> int:
    """From `config.json`; without it, from the tokenizer, which was read before."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        inner = config.get("text_config") or config
        declared = inner.get("vocab_size", config.get("vocab_size"))
        if isinstance(declared, int) and declared > 0:
            return declared
    except (OSError, ValueError, AttributeError):
        pass
    size: int = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    return size
