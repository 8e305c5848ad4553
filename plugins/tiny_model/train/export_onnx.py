"""Writes the model as ONNX graphs, in both layouts of the KV cache that exports have.

    python -m train.export_onnx           writes model.onnx beside each model.safetensors

The graphs hold no weights of their own: they point at the numbers in `model.safetensors`, in the
same folder, and turn them into float32, which ONNX Runtime does once when it loads them. `shared`
graphs use grouped-query attention with one buffer for past and present, as onnxruntime-genai's
exports do; `concatenated` ones take the past and give it back longer, as optimum's do. Needs the
package `onnx`, and nothing else of the training.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

Layout = Literal["shared", "concatenated"]

OPSET = 17
_KINDS = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT}
_ATTENTION = {"shared": "attn", "concatenated": "self_attn"}  # As the two exporters name it.
_DATA = Path(__file__).resolve().parents[1] / "src" / "themis_tiny_model" / "data"


class LlamaGraph:
    """The graph of a Llama with rotary embeddings and RMS norms.

    `config` is what config.json has. The weights come from `matrix` and `vector`, which subclasses
    may give other forms.
    """

    def __init__(self, config: dict[str, Any], layout: Layout) -> None:
        self.config = config
        self.layout = layout
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.heads = int(config["num_attention_heads"])
        self.pairs = int(config["num_key_value_heads"])
        self.size = int(config["head_dim"])
        self.layers = int(config["num_hidden_layers"])
        self.attention_name = _ATTENTION[layout]

    # --- weights ---------------------------------------------------------------------------------

    def vector(self, name: str) -> str:
        """The name of a float32 tensor with this weight as it is stored."""
        raise NotImplementedError

    def linear(self, x: str, weight: str, node: str) -> str:
        """x times a weight that is stored as (output, input)."""
        turned = self.add("Transpose", [self.vector(weight)], perm=[1, 0])
        return self.add("MatMul", [x, turned], name=f"{node}/MatMul")

    # --- building --------------------------------------------------------------------------------

    def add(
        self, op: str, inputs: Iterable[str], *, name: str = "", domain: str = "", **attributes: Any
    ) -> str:
        """A node with one output; gives its name."""
        return self.add_many(op, inputs, 1, name=name, domain=domain, **attributes)[0]

    def add_many(
        self,
        op: str,
        inputs: Iterable[str],
        count: int,
        *,
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """A node with several outputs; gives their names."""
        name = name or f"{op}_{len(self.nodes)}"
        outputs = [f"{name}_output_{i}" for i in range(count)]
        self.nodes.append(
            helper.make_node(op, list(inputs), outputs, name=name, domain=domain, **attributes)
        )
        return outputs

    def constant(self, value: Any, kind: Any = np.int64) -> str:
        """A small tensor that is part of the graph."""
        array = np.asarray(value, kind)
        name = f"constant_{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array, name))
        return name

    def rename(self, old: str, new: str) -> None:
        """Give a node's output, which nothing uses yet, the name of a graph's output."""
        for node in reversed(self.nodes):
            if old in node.output:
                node.output[list(node.output).index(old)] = new
                return

    def norm(self, x: str, weight: str) -> str:
        """RMSNorm (Zhang and Sennrich 2019)."""
        two = self.constant(2.0, np.float32)
        epsilon = self.constant(self.config["rms_norm_eps"], np.float32)
        square = self.add("ReduceMean", [self.add("Pow", [x, two])], axes=[-1], keepdims=1)
        root = self.add("Sqrt", [self.add("Add", [square, epsilon])])
        return self.add("Mul", [self.add("Div", [x, root]), self.vector(weight)])

    def rotation(self) -> tuple[str, str]:
        """Cosines and sines (context, D/2) of rotary embeddings (Su et al. 2021)."""
        size, theta = self.size, float(self.config["rope_theta"])
        frequencies = theta ** (-np.arange(0, size, 2) / size)
        context = int(self.config["max_position_embeddings"])
        limits = [self.constant(v) for v in (0, context, 1)]
        positions = self.add("Cast", [self.add("Range", limits)], to=TensorProto.FLOAT)
        column = self.add("Unsqueeze", [positions, self.constant([1])])
        angles = self.add("Mul", [column, self.constant(frequencies[None], np.float32)])
        return self.add("Cos", [angles]), self.add("Sin", [angles])

    def mlp(self, x: str, layer: int) -> str:
        """SwiGLU (Shazeer 2020)."""
        weight, node = f"model.layers.{layer}.mlp", f"/model/layers.{layer}/mlp"
        gate = self.linear(x, f"{weight}.gate_proj.weight", f"{node}/gate_proj")
        up = self.linear(x, f"{weight}.up_proj.weight", f"{node}/up_proj")
        mixed = self.add("Mul", [self.add("Mul", [gate, self.add("Sigmoid", [gate])]), up])
        return self.linear(mixed, f"{weight}.down_proj.weight", f"{node}/down_proj")

    def build(self) -> onnx.ModelProto:
        """The whole model."""
        prepare = self.prepare_shared if self.layout == "shared" else self.prepare_concatenated
        attend = self.attend_shared if self.layout == "shared" else self.attend_concatenated
        prepare()
        hidden = self.add("Gather", [self.vector("model.embed_tokens.weight"), "input_ids"])
        for layer in range(self.layers):
            weight = f"model.layers.{layer}"
            node = f"/model/layers.{layer}/{self.attention_name}"
            normed = self.norm(hidden, f"{weight}.input_layernorm.weight")
            q, k, v = (
                self.linear(normed, f"{weight}.self_attn.{p}_proj.weight", f"{node}/{p}_proj")
                for p in "qkv"
            )
            mixed = attend(q, k, v, layer)
            out = self.linear(mixed, f"{weight}.self_attn.o_proj.weight", f"{node}/o_proj")
            hidden = self.add("Add", [hidden, out])
            normed = self.norm(hidden, f"{weight}.post_attention_layernorm.weight")
            hidden = self.add("Add", [hidden, self.mlp(normed, layer)])
        hidden = self.norm(hidden, "model.norm.weight")
        tied = self.config["tie_word_embeddings"]
        head = "model.embed_tokens.weight" if tied else "lm_head.weight"
        self.rename(self.linear(hidden, head, "/lm_head"), "logits")
        return self.finish()

    def finish(self) -> onnx.ModelProto:
        """The nodes with the graph's inputs and outputs."""

        def value(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, shape)

        whole, real = TensorProto.INT64, TensorProto.FLOAT
        inputs = [
            value("input_ids", whole, ["batch", "length"]),
            value("attention_mask", whole, ["batch", "total"]),
        ]
        if self.layout == "concatenated":
            inputs.append(value("position_ids", whole, ["batch", "length"]))
        outputs = [value("logits", real, ["batch", "length", int(self.config["vocab_size"])])]
        for layer in range(self.layers):
            for part in ("key", "value"):
                shape = ["batch", self.pairs, "past", self.size]
                inputs.append(value(f"past_key_values.{layer}.{part}", real, shape))
                longer = ["batch", self.pairs, "total", self.size]
                outputs.append(value(f"present.{layer}.{part}", real, longer))
        graph = helper.make_graph(self.nodes, "llama", inputs, outputs, self.weights)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
            ir_version=8,
            producer_name="themis",
        )

    # --- attention, with one buffer for past and present -----------------------------------------

    def prepare_shared(self) -> None:
        """What all layers need: lengths, and the tables of the rotary embeddings."""
        one = self.constant([1])
        sums = self.add("ReduceSum", ["attention_mask", one], keepdims=0)
        past = self.add("Sub", [sums, one])
        self.lengths = self.add("Cast", [past], to=TensorProto.INT32)
        shape = self.add("Shape", ["attention_mask"])
        total = self.add("Gather", [shape, self.constant(1)], axis=0)
        self.total = self.add("Cast", [total], to=TensorProto.INT32)
        self.tables = self.rotation()

    def attend_shared(self, q: str, k: str, v: str, layer: int) -> str:
        """Rotary embeddings and attention in one operation of ONNX Runtime."""
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        mixed, key, value = self.add_many(
            "GroupQueryAttention",
            [q, k, v, *past, self.lengths, self.total, *self.tables],
            3,
            name=f"/model/layers.{layer}/attn/GroupQueryAttention",
            domain="com.microsoft",
            num_heads=self.heads,
            kv_num_heads=self.pairs,
            scale=self.size**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
        )
        self.rename(key, f"present.{layer}.key")
        self.rename(value, f"present.{layer}.value")
        return mixed

    # --- attention, with past and new put together -----------------------------------------------

    def prepare_concatenated(self) -> None:
        """What all layers need: who sees whom, and the rotary embeddings of the positions."""
        cosines, sines = self.rotation()
        heads = self.constant([1])
        self.turn = [
            self.add("Unsqueeze", [self.add("Gather", [table, "position_ids"]), heads])
            for table in (cosines, sines)
        ]
        zero, one = self.constant(0), self.constant(1)
        total = self.add("Gather", [self.add("Shape", ["attention_mask"]), one], axis=0)
        length = self.add("Gather", [self.add("Shape", ["input_ids"]), one], axis=0)
        columns = self.add("Range", [zero, total, one])
        rows = self.add("Range", [self.add("Sub", [total, length]), total, one])
        row = self.add("Unsqueeze", [rows, self.constant([1])])
        causal = self.add("LessOrEqual", [columns, row])
        mask = self.add("Cast", ["attention_mask"], to=TensorProto.BOOL)
        wide = self.add("Unsqueeze", [mask, self.constant([1, 2])])
        seen = self.add("And", [wide, causal])
        least = self.constant(np.finfo(np.float32).min, np.float32)
        bias = self.add("Where", [seen, self.constant(0.0, np.float32), least])
        self.bias = self.add("Unsqueeze", [bias, self.constant([1])])  # (B, 1, 1, S, P + S)

    def rotate(self, x: str) -> str:
        """Rotate (B, heads, S, D). Number i is paired with number i + D/2."""
        first, second = self.add_many("Split", [x], 2, axis=-1)
        cosine, sine = self.turn
        left = self.add("Sub", [self.add("Mul", [first, cosine]), self.add("Mul", [second, sine])])
        right = self.add("Add", [self.add("Mul", [second, cosine]), self.add("Mul", [first, sine])])
        return self.add("Concat", [left, right], axis=-1)

    def attend_concatenated(self, q: str, k: str, v: str, layer: int) -> str:
        """Attention (Vaswani et al. 2017) with grouped queries (Ainslie et al. 2023)."""

        def heads(x: str, count: int) -> str:
            apart = self.add("Reshape", [x, self.constant([0, 0, count, self.size])])
            return self.add("Transpose", [apart], perm=[0, 2, 1, 3])

        query, key = self.rotate(heads(q, self.heads)), self.rotate(heads(k, self.pairs))
        value = heads(v, self.pairs)
        past = f"past_key_values.{layer}"
        key = self.add("Concat", [f"{past}.key", key], axis=2)
        value = self.add("Concat", [f"{past}.value", value], axis=2)
        self.rename(key, f"present.{layer}.key")
        self.rename(value, f"present.{layer}.value")
        group = self.heads // self.pairs
        # The queries of a group share a key: (B, K, G, S, D) times (B, K, 1, D, P + S).
        split = self.constant([0, self.pairs, group, -1, self.size])
        grouped = self.add("Reshape", [query, split])
        axis = self.constant([2])
        keys = self.add("Unsqueeze", [f"present.{layer}.key", axis])
        values = self.add("Unsqueeze", [f"present.{layer}.value", axis])
        scores = self.add("MatMul", [grouped, self.add("Transpose", [keys], perm=[0, 1, 2, 4, 3])])
        scale = self.constant(self.size**-0.5, np.float32)
        seen = self.add("Add", [self.add("Mul", [scores, scale]), self.bias])
        weights = self.add("Softmax", [seen], axis=-1)
        mixed = self.add("MatMul", [weights, values])
        together = self.constant([0, self.heads, -1, self.size])
        back = self.add("Transpose", [self.add("Reshape", [mixed, together])], perm=[0, 2, 1, 3])
        return self.add("Reshape", [back, self.constant([0, 0, self.heads * self.size])])


class StoredLlama(LlamaGraph):
    """A graph whose weights lie in a safetensors file of the same folder, in float16."""

    def __init__(self, folder: Path, layout: Layout, file: str = "model.safetensors") -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        super().__init__(config, layout)
        self.file = file
        self.places = tensor_places(folder / file)
        self.made: dict[str, str] = {}

    def vector(self, name: str) -> str:
        """Float32 of a stored weight."""
        if name not in self.made:
            kind, shape, offset, length = self.places[name]
            tensor = onnx.TensorProto(
                name=name,
                data_type=kind,
                dims=shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (("location", self.file), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            self.weights.append(tensor)
            self.made[name] = self.add("Cast", [name], to=TensorProto.FLOAT)
        return self.made[name]


def tensor_places(file: Path) -> dict[str, tuple[int, list[int], int, int]]:
    """Type, shape, offset and length in bytes of each tensor of a safetensors file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    places = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        places[name] = (_KINDS[entry["dtype"]], entry["shape"], 8 + length + begin, end - begin)
    return places


def write(folder: Path, layout: Layout, target: Path | None = None) -> Path:
    """Write the graph of a Hugging Face directory, into it unless `target` says otherwise."""
    model = StoredLlama(folder, layout).build()
    target = target or folder / "model.onnx"
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target


if __name__ == "__main__":
    for name in ("hf", "draft-hf"):
        made = write(_DATA / name, "shared")
        sys.stdout.write(f"{made}: {made.stat().st_size} bytes\n")
