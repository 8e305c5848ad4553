"""What a sentence-transformers directory says about making vectors of states.

`modules.json` lists the stages, `1_Pooling/config.json` says how states are pooled, and
`sentence_bert_config.json` how long a text may be: the files of
https://github.com/huggingface/sentence-transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from themis_core.errors import ModelFileInvalid
from themis_engine import Pooling
from themis_onnx.directory import ModelFiles, read_json, unfit
from themis_onnx.signature import text_config

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_STAGES = {"Transformer", "Pooling", "Normalize"}
# These count positions from behind the padding token's id.
_OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer"}


@dataclass(frozen=True, slots=True)
class SentenceFacts:
    """`longest` is the most tokens of a text, `positions` the most that the model can take."""

    pooling: Pooling
    longest: int
    positions: int


def sentence_facts(files: ModelFiles) -> SentenceFacts:
    """Read the directory. Raises `ModelLoadFailed` for what would give other vectors."""
    _check_stages(files.root / "modules.json")
    config = text_config(files.config)
    positions = config.get("max_position_embeddings")
    if type(positions) is int and config.get("model_type") in _OFFSET:
        positions -= int(config.get("pad_token_id") or 0) + 1
    bert = read_json(files.root / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = read_json(files.root / "tokenizer_config.json").get("model_max_length")
    lengths = [n for n in (positions, bert, tokenizer) if type(n) is int and 0 < n < 10**9]
    if not lengths:
        raise unfit("nothing in its directory says how long a text may be")
    most = positions if type(positions) is int else min(lengths)
    return SentenceFacts(_pooling(files.root), min(lengths), most)


def _pooling(root: Path) -> Pooling:
    declared = read_json(root / "1_Pooling" / "config.json")
    if not declared:
        return "mean"  # What is usual for encoders.
    named = declared.get("pooling_mode")
    if isinstance(named, str):
        chosen = [named]
    else:
        chosen = [name for name, on in declared.items() if name.startswith("pooling_mode_") and on]
    known = _MODES | _NAMES
    if len(chosen) != 1 or chosen[0] not in known:
        raise unfit(
            f"it pools by {', '.join(chosen) or 'nothing'}; possible are mean, cls and last"
        )
    return known[chosen[0]]


def _check_stages(file: Path) -> None:
    if not file.exists():
        return
    try:
        stages: Any = json.loads(file.read_text(encoding="utf-8"))
        kinds = [str(stage["type"]).rpartition(".")[2] for stage in stages]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelFileInvalid(
            f"{file} cannot be read: {error!r}.",
            field="path",
            remedy="Download the model's directory again, with all its files.",
            plugin="onnx",
        ) from error
    others = [kind for kind in kinds if kind not in _STAGES]
    if others:
        raise unfit(
            f"its vectors pass through a stage {others[0]!r}, which is no part of the graph"
        )
