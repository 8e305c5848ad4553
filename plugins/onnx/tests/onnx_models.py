"""What the tests share: the bundled model in several exports, runners of it, and batches."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from themis_core.messages import AdapterWeight
from themis_engine import Batch, Logits, ModelRunner
from themis_onnx.settings import OnnxSettings
from themis_tiny_model import path
from train.export_onnx import Layout, StoredLlama

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
LAYOUTS = ("shared", "concatenated")
# Made once for all tests; the process's end removes them.
_FOLDER = tempfile.TemporaryDirectory(prefix="themis-onnx-tests-")


def graph(layout: Layout, form: str = "plain") -> onnx.ModelProto:
    """The bundled model's graph.

    Forms: `plain`; `pruned` gives the last position's logits only; `keeps` is told how many logits
    are wanted; `half` computes and caches in float16; `whole` ends in an operation behind which
    nobody looks for the output matrix, so that all logits are computed; `int4` has matrices in
    blocks of 4 bits, `int8` quantises weights and, with one scale for all rows, activations.
    """
    kinds = {"int4": _Int4Llama, "int8": _Int8Llama}
    made: StoredLlama = kinds.get(form, StoredLlama)(path("hf"), layout)
    model: onnx.ModelProto = made.build()
    if form == "half":
        return _half(model)
    if form == "whole":
        last = model.graph.node[-1]
        last.output[0] = "whole_logits"
        model.graph.node.append(helper.make_node("Clip", ["whole_logits"], ["logits"]))
    if form in ("pruned", "keeps"):
        _keep_last(model, told=form == "keeps")
    return model


def directory(layout: Layout, form: str = "plain") -> Path:
    """A directory as optimum makes it, with the graph in this form."""
    return _directory(layout, form)


@functools.cache
def _directory(layout: Layout, form: str) -> Path:
    folder = Path(_FOLDER.name) / f"{layout}-{form}"
    fill(folder)
    (folder / "model.onnx").write_bytes(graph(layout, form).SerializeToString())
    return folder


def fill(folder: Path) -> Path:
    """Everything but the graph."""
    shutil.copytree(path("hf"), folder, ignore=shutil.ignore_patterns("*.onnx"))
    return folder


def settings(folder: Path, **changes: Any) -> OnnxSettings:
    """For one thread and a small cache."""
    values: dict[str, Any] = {"path": str(folder), "threads": 1, "parallel": 6}
    values |= {"prefix_sequences": 2} | changes
    return OnnxSettings(**values)


@contextmanager
def running(folder: Path, **changes: Any) -> Iterator[Any]:
    """A runner, closed afterwards."""
    from themis_onnx.loading import load

    runner = load(settings(folder, **changes))
    try:
        yield runner
    finally:
        runner.close()


def batch(
    *parts: tuple[int, int, list[int]],
    rows: str = "last",
    adapters: tuple[AdapterWeight, ...] = (),
) -> Batch:
    """From (sequence, start, tokens); logits of each part's last token, of all, or of none."""
    tokens = [t for _, _, part in parts for t in part]
    wanted = {"last": np.cumsum([len(p) for _, _, p in parts]) - 1, "all": range(len(tokens))}
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array([s + i for _, s, p in parts for i in range(len(p))], np.int32),
        sequences=np.array([q for q, _, p in parts for _ in p], np.int32),
        logit_rows=np.array(wanted.get(rows, []), np.int32),
        adapters=adapters,
    )


def forward(
    runner: ModelRunner,
    *parts: tuple[int, int, list[int]],
    rows: str = "last",
    adapters: tuple[AdapterWeight, ...] = (),
) -> Logits:
    """The logits of a batch, as an array of their own."""
    return runner.forward(batch(*parts, rows=rows, adapters=adapters)).copy()


def ids(runner: ModelRunner, text: str = PROMPT) -> list[int]:
    """The tokens of a text."""
    return runner.tokenizer.encode(text, parse_special=True)


def greedy(
    runner: ModelRunner,
    tokens: list[int],
    count: int,
    adapters: tuple[AdapterWeight, ...] = (),
) -> list[int]:
    """The next tokens, computed in sequence 0, which is free before and after."""
    answer: list[int] = []
    held = 0
    for _ in range(count):
        logits = forward(runner, (0, held, [*tokens, *answer][held:]), adapters=adapters)
        held = len(tokens) + len(answer)
        answer.append(int(logits[0].argmax()))
    runner.free(0)
    return answer


def _keep_last(model: onnx.ModelProto, *, told: bool) -> None:
    """Cut the hidden states before the output matrix, in the middle of which rows are dropped."""
    nodes = model.graph.node
    head = next(node for node in nodes if node.name == "/lm_head/MatMul")
    hidden = head.input[0]
    whole: dict[str, Any] = {"data_type": TensorProto.INT64, "dims": [1]}
    model.graph.initializer.extend(
        [
            helper.make_tensor("cut_one", vals=[-1], **whole),
            helper.make_tensor("cut_end", vals=[2**62], **whole),
            helper.make_tensor("cut_axis", vals=[1], **whole),
            helper.make_tensor("cut_shape", vals=[1], **whole),
        ]
    )
    start = "cut_one"
    added = []
    if told:
        scalar = helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, [])
        model.graph.input.append(scalar)
        added.append(helper.make_node("Neg", ["num_logits_to_keep"], ["cut_negative"]))
        added.append(helper.make_node("Reshape", ["cut_negative", "cut_shape"], ["cut_start"]))
        start = "cut_start"
    added.append(helper.make_node("Slice", [hidden, start, "cut_end", "cut_axis"], ["cut_hidden"]))
    head.input[0] = "cut_hidden"
    at = list(nodes).index(head)
    rest = list(nodes)[at:]
    del nodes[at:]
    nodes.extend([*added, *rest])


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights are not cast to float32, constants are halved, and so are cache and logits."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == 1:
                attribute.i = TensorProto.FLOAT16
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            values = np.clip(onnx.numpy_helper.to_array(weight), -65504, 65504)
            half = onnx.numpy_helper.from_array(values.astype(np.float16), weight.name)
            weight.CopyFrom(half)
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


class _QuantisedLlama(StoredLlama):  # type: ignore[misc]  # The training scripts are not checked.
    """Its projections' weights are in the graph, rounded."""

    def stored(self, name: str, values: Any) -> str:
        if all(weight.name != name for weight in self.weights):
            self.weights.append(onnx.numpy_helper.from_array(values, name))
        return name

    def real(self, weight: str) -> Any:
        return load_file(path("hf") / "model.safetensors")[weight].astype(np.float32)


class _Int4Llama(_QuantisedLlama):
    """Blocks of 32 numbers share a scale; two numbers, of 0 to 15, share a byte."""

    def linear(self, x: str, weight: str, node: str) -> str:
        real = self.real(weight)
        blocks = real.reshape(len(real), -1, 32)
        scales = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-9) / 7
        numbers = (np.round(blocks / scales) + 8).astype(np.uint8)
        packed = self.stored(f"{weight}.q4", numbers[..., ::2] | numbers[..., 1::2] << 4)
        inputs = [x, packed, self.stored(f"{weight}.scale", scales.reshape(-1).astype(np.float32))]
        attributes = {"N": real.shape[0], "K": real.shape[1], "bits": 4, "block_size": 32}
        name, domain = f"{node}/MatMul", "com.microsoft"
        return str(self.add("MatMulNBits", inputs, name=name, domain=domain, **attributes))


class _Int8Llama(_QuantisedLlama):
    """As dynamic quantisation makes it."""

    def linear(self, x: str, weight: str, node: str) -> str:
        real = self.real(weight).T
        scale = np.abs(real).max() / 127
        inner = self.stored(f"{weight}.q8", np.round(real / scale).astype(np.int8))
        small, by, zero = self.add_many("DynamicQuantizeLinear", [x], 3)
        whole = self.add("MatMulInteger", [small, inner, zero], name=f"{node}/MatMulInteger")
        product = self.add("Mul", [self.add("Cast", [whole], to=TensorProto.FLOAT), by])
        return str(self.add("Mul", [product, self.constant(scale, np.float32)]))
