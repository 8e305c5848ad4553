"""Makes the model that `onnx` measures: random weights in the shape of a small real one.

The shape is that of `model.py`: a llama of 12 layers, width 768, 12 heads, a vocabulary of 50,176.
One directory holds the graph in float32, one with its matrices in blocks of 4 bits; both are in the
form of onnxruntime-genai's own exports, so that it and Themis compute with the very same file.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.model import CACHE, SEED
from benchmarks.shape import CONTEXT, FFN, HEADS, HIDDEN, LAYERS
from benchmarks.vocabulary import build, is_plain

Precision = Literal["fp32", "int4"]

VERSION = 1  # Raised with every change that changes the files.
BLOCK = 32  # Numbers that share a scale.
_TINY = Path(__file__).parents[1] / "plugins" / "tiny_model"
_Matrix = npt.NDArray[np.float32]


def ensure(precision: Precision) -> Path:
    """The model's directory, made now if it is not in the cache."""
    folder = CACHE / f"random-124m-onnx-{precision}-v{VERSION}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, precision)
        partial.replace(folder)
    return folder


def config() -> dict[str, Any]:
    """What config.json says."""
    vocabulary = build(SEED)
    return {
        "model_type": "llama",
        "vocab_size": len(vocabulary.tokens),
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": vocabulary.end,
        "eos_token_id": vocabulary.end,
    }


def quantised(matrix: _Matrix) -> tuple[npt.NDArray[np.uint8], _Matrix]:
    """A matrix (N, K) as `MatMulNBits` takes it: (N, K / 32, 16) bytes and (N · K / 32) scales.

    Two numbers of 0 to 15 share a byte, the first in the lower half; 8 stands for 0. See
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = np.where(largest == 0, 1, largest / -8).astype(np.float32)
    numbers = np.clip(np.round(blocks / scales) + 8, 0, 15).astype(np.uint8)
    return numbers[..., ::2] | numbers[..., 1::2] << 4, scales.reshape(-1)


def _write(folder: Path, precision: Precision) -> None:
    sys.path.insert(0, str(_TINY))
    from train.export_onnx import LlamaGraph

    chance = np.random.default_rng(SEED)

    class RandomGraph(LlamaGraph):  # type: ignore[misc]  # The training scripts are not checked.
        """The weights are made as they are asked for."""

        def __init__(self) -> None:
            super().__init__(config(), "shared")
            self.made: dict[str, _Matrix] = {}

        def values(self, name: str) -> _Matrix:
            if name not in self.made:
                self.made[name] = _values(name, chance)
            return self.made[name]

        def store(self, name: str, values: npt.NDArray[Any]) -> str:
            if all(weight.name != name for weight in self.weights):
                self.weights.append(onnx.numpy_helper.from_array(values, name))
            return name

        def vector(self, name: str) -> str:
            return self.store(name, self.values(name))

        def linear(self, x: str, weight: str, node: str) -> str:
            values = self.values(weight)
            if precision == "fp32":
                turned = self.store(f"{weight}.turned", np.ascontiguousarray(values.T))
                return str(self.add("MatMul", [x, turned], name=f"{node}/MatMul"))
            numbers, scales = quantised(values)
            inputs = [
                x,
                self.store(f"{weight}.q4", numbers),
                self.store(f"{weight}.scales", scales),
            ]
            rows, columns = values.shape
            return str(
                self.add(
                    "MatMulNBits",
                    inputs,
                    name=f"{node}/MatMul",
                    domain="com.microsoft",
                    K=columns,
                    N=rows,
                    bits=4,
                    block_size=BLOCK,
                    accuracy_level=4,  # As genai's exports for processors have it.
                )
            )

    model = RandomGraph().build()
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=1024,
    )
    _write_json(folder / "config.json", config())
    _write_json(folder / "genai_config.json", _genai(config()))
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _values(name: str, chance: np.random.Generator) -> _Matrix:
    """Scaled so that what flows through keeps its size, and attention is neither flat nor stuck."""
    if "norm" in name:
        return np.ones(HIDDEN, np.float32)
    vocabulary = build(SEED)
    shapes = {
        "embed_tokens": (len(vocabulary.tokens), HIDDEN),
        "gate_proj": (FFN, HIDDEN),
        "up_proj": (FFN, HIDDEN),
        "down_proj": (HIDDEN, FFN),
    }
    rows, columns = shapes.get(name.split(".")[-2], (HIDDEN, HIDDEN))
    matrix = chance.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
    if "embed_tokens" in name:
        # Rows of zeros have a logit of zero, so that no answer ever ends early.
        matrix[[not is_plain(token) for token in vocabulary.tokens]] = 0.0
    return matrix


def _genai(stated: dict[str, Any]) -> dict[str, Any]:
    """genai_config.json, as far as onnxruntime-genai asks for it."""
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": stated["head_dim"],
        "hidden_size": stated["hidden_size"],
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": stated["num_attention_heads"],
        "num_hidden_layers": stated["num_hidden_layers"],
        "num_key_value_heads": stated["num_key_value_heads"],
    }
    return {
        "model": {
            "bos_token_id": stated["bos_token_id"],
            "context_length": stated["max_position_embeddings"],
            "decoder": decoder,
            "eos_token_id": stated["eos_token_id"],
            "pad_token_id": stated["eos_token_id"],
            "type": "llama",
            "vocab_size": stated["vocab_size"],
        },
        "search": {
            "do_sample": False,
            "max_length": stated["max_position_embeddings"],
            "past_present_share_buffer": True,
        },
    }


def _tokenizer() -> dict[str, Any]:
    """tokenizer.json of the vocabulary: byte-level BPE."""
    vocabulary = build(SEED)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary.end,
                "content": vocabulary.tokens[vocabulary.end],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
