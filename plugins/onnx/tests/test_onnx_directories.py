"""Layouts of model directories, the choice among variants, and what is refused for which reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper

from themis_core.errors import ModelFileInvalid, ModelLoadFailed
from themis_onnx import probe
from themis_onnx.directory import find

from .onnx_models import directory, fill, forward, graph, greedy, ids, running

KINDS = {"int": TensorProto.INT64, "float": TensorProto.FLOAT}


def stub(
    file: Path, inputs: dict[str, tuple[str, list[Any]]], outputs: dict[str, tuple[str, list[Any]]]
) -> None:
    """A graph that only has these inputs and outputs."""

    def values(named: dict[str, tuple[str, list[Any]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, KINDS[kind], shape)
            for name, (kind, shape) in named.items()
        ]

    nodes, weights = [], []
    for name, (kind, shape) in outputs.items():
        zeros = np.zeros([n if isinstance(n, int) else 1 for n in shape])
        value = onnx.numpy_helper.from_array(
            zeros.astype(np.float32 if kind == "float" else np.int64), f"{name}_value"
        )
        weights.append(value)
        nodes.append(helper.make_node("Identity", [value.name], [name]))
    made = helper.make_graph(nodes, "stub", values(inputs), values(outputs), weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.SerializeToString())


IDS = {"input_ids": ("int", ["b", "s"])}
MASK = {"attention_mask": ("int", ["b", "t"])}
PAST = {"past_key_values.0.key": ("float", ["b", 2, "p", 4])}
PAST |= {"past_key_values.0.value": ("float", ["b", 2, "p", 4])}
PRESENT = {f"present.0.{part}": ("float", ["b", 2, "t", 4]) for part in ("key", "value")}
LOGITS = {"logits": ("float", ["b", "s", 10])}


def transformers_js(folder: Path, *variants: str) -> Path:
    """The layout of onnx-community: the graphs are in a folder of their own."""
    fill(folder)
    (folder / "onnx").mkdir()
    shutil.move(folder / "model.safetensors", folder / "onnx" / "model.safetensors")
    for variant in variants:
        name = "model.onnx" if variant == "fp32" else f"model_{variant}.onnx"
        (folder / "onnx" / name).write_bytes(graph("concatenated").SerializeToString())
    return folder


def genai(folder: Path) -> Path:
    """The layout of onnxruntime-genai."""
    fill(folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink()
    model = graph("shared")
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("past", "present")):
            # Its exports name these numbers in the configuration only.
            for dimension in (1, 3):
                value.type.tensor_type.shape.dim[dimension].dim_param = f"d{dimension}"
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    decoder = {
        "filename": "decoder.onnx",
        "head_size": config["head_dim"],
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
    }
    stated = {"type": "llama", "context_length": 512, "eos_token_id": [3, 1917], "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": stated}))
    return folder


def test_the_layout_of_transformers_js(tmp_path: Path) -> None:
    with running(transformers_js(tmp_path / "m", "fp32")) as runner:
        answer = greedy(runner, ids(runner), 8)
        assert runner.tokenizer.chat_template
    with running(directory("concatenated")) as runner:
        assert greedy(runner, ids(runner), 8) == answer


def test_a_file_can_be_named_itself(tmp_path: Path) -> None:
    folder = transformers_js(tmp_path / "m", "fp32", "q4")
    with running(folder / "onnx" / "model_q4.onnx") as runner:
        assert runner.info.context_length == 2048
    with (
        pytest.raises(ModelLoadFailed, match="path names the file itself"),
        running(folder / "onnx" / "model_q4.onnx", variant="q4"),
    ):
        pass


@pytest.mark.parametrize(
    ("variants", "provider", "chosen"),
    [
        (("fp32", "q4", "fp16", "quantized"), "cpu", "model_q4"),
        (("fp32", "fp16", "quantized"), "cpu", "model_quantized"),
        (("fp32", "fp16"), "cpu", "model"),
        (("fp32", "fp16", "q4f16"), "cuda", "model_q4f16"),
        (("fp32", "fp16", "q4"), "cuda", "model_fp16"),
        (("odd", "strange"), "cpu", "model_odd"),
    ],
)
def test_the_variant_that_suits_the_provider(
    variants: tuple[str, ...], provider: str, chosen: str, tmp_path: Path
) -> None:
    folder = transformers_js(tmp_path / "m", *variants)
    assert find(folder, None, provider).graph.path.stem == chosen
    last = variants[-1]
    assert find(folder, last, provider).graph.path.stem == f"model_{last}"
    with pytest.raises(ModelLoadFailed, match=rf"variant is 'q9'.*{variants[0]}"):
        find(folder, "q9", provider)


def test_the_directory_may_say_which_variant(tmp_path: Path) -> None:
    folder = transformers_js(tmp_path / "m", "fp32", "q4", "fp16")
    config = json.loads((folder / "config.json").read_text())
    config["transformers.js_config"] = {"dtype": "fp16"}
    (folder / "config.json").write_text(json.dumps(config))
    assert find(folder, None, "cpu").graph.path.stem == "model_fp16"


def test_encoders_are_not_taken_coarser_than_they_need_be(tmp_path: Path) -> None:
    for name in ("model", "model_q4", "model_quantized"):
        states = {"last_hidden_state": ("float", ["b", "s", 8])}
        stub(tmp_path / "onnx" / f"{name}.onnx", IDS | MASK, states)
    (tmp_path / "config.json").write_text("{}")
    assert find(tmp_path, None, "cpu").graph.path.stem == "model"


def test_the_layout_of_genai(tmp_path: Path) -> None:
    with running(genai(tmp_path / "m")) as runner:
        assert runner.info.context_length == 512
        assert runner.tokenizer.end_tokens == {3, 1917}
        with running(directory("shared")) as other:
            assert greedy(runner, ids(runner), 8) == greedy(other, ids(other), 8)


def test_genai_models_in_folders(tmp_path: Path) -> None:
    one = genai(tmp_path / "cpu_and_mobile" / "cpu-int4")
    assert find(tmp_path, None, "cpu").root == one
    two = tmp_path / "gpu" / "gpu-int4"
    shutil.copytree(one, two)
    listed = r"cpu_and_mobile/cpu-int4, gpu/gpu-int4"
    with pytest.raises(ModelLoadFailed, match=f"several models: {listed}"):
        find(tmp_path, None, "cpu")
    assert find(tmp_path, "gpu/gpu-int4", "cpu").root == two
    assert find(tmp_path, "cpu_and_mobile", "cpu").root == one
    with pytest.raises(ModelLoadFailed, match=listed):
        find(tmp_path, "npu", "cpu")
    with pytest.raises(ModelLoadFailed, match="has one model only"):
        find(one, "x", "cpu")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"model": {"decoder": {}}}, "names no file"),
        ({"model": {"decoder": {"filename": "../x.onnx"}}}, "names no file"),
        ({"model": {"decoder": {"filename": "x.onnx"}}}, "x.onnx cannot be used: there is no such"),
        ({"model": {"encoder": {}, "decoder": {}}}, "an encoder and a decoder"),
        ({"model": {"decoder": {"pipeline": []}}}, "a pipeline"),
        ({"model": 7}, "names no file"),
    ],
)
def test_genai_configurations_that_do_not_fit(
    changes: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    folder = genai(tmp_path / "m")
    (folder / "genai_config.json").write_text(json.dumps(changes))
    with pytest.raises((ModelFileInvalid, ModelLoadFailed), match=cause):
        find(folder, None, "cpu")


@pytest.mark.parametrize("key", ["head_size", "num_key_value_heads"])
def test_genai_configurations_that_lie(key: str, tmp_path: Path) -> None:
    folder = genai(tmp_path / "m")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"][key] += 1
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadFailed), running(folder):
        pass


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "merged": (
        "model",
        IDS | {"use_cache_branch": ("int", [1])} | PAST,
        LOGITS | PRESENT,
        "merged from two graphs",
    ),
    "merged-by-name": ("decoder_model_merged", IDS | PAST, LOGITS | PRESENT, "merged from two"),
    "two-graphs": ("decoder_with_past_model", IDS | PAST, LOGITS | PRESENT, "two graphs, with"),
    "encoder-decoder": ("encoder_model", IDS, LOGITS, "an encoder and a decoder"),
    "encoder-states": (
        "model",
        IDS | {"encoder_hidden_states": ("float", ["b", "s", 4])} | PAST,
        LOGITS | PRESENT,
        "an encoder and a decoder",
    ),
    "multimodal": ("embed_tokens", IDS, LOGITS, "embeddings are a graph of their own"),
    "embeddings": (
        "model",
        {"inputs_embeds": ("float", ["b", "s", 4])} | PAST,
        LOGITS | PRESENT,
        "embeddings instead of token ids",
    ),
    "hybrid": (
        "model",
        IDS | PAST | {"past_conv.0": ("float", ["b", 4, 3])},
        LOGITS | PRESENT,
        "no KV cache \\(past_conv.0\\)",
    ),
    "paged": (
        "model",
        {"input_ids": ("int", ["n"]), "block_table": ("int", ["b", "k"])} | PAST,
        LOGITS | PRESENT,
        "a paged KV cache",
    ),
    "flat": ("model", {"input_ids": ("int", ["n"])} | PAST, LOGITS | PRESENT, "one dimension"),
    "unknown-input": (
        "model",
        IDS | {"surprise": ("int", ["b"])} | PAST,
        LOGITS | PRESENT,
        "unknown here: surprise",
    ),
    "no-past": ("model", IDS, LOGITS, "no KV cache: it was exported without past"),
    "no-present": ("model", IDS | PAST, LOGITS, "do not match"),
    "no-logits": ("model", IDS | PAST, PRESENT, "no input_ids or no logits"),
    "integers": (
        "model",
        IDS | {n: ("int", s) for n, (_, s) in PAST.items()},
        LOGITS | PRESENT,
        "stored as tensor\\(int64\\)",
    ),
    "flat-cache": (
        "model",
        IDS | {n: ("float", ["b", "p", 8]) for n in PAST},
        LOGITS | PRESENT,
        "3 dimensions",
    ),
    "other-outputs": ("model", IDS, {"scores": ("float", ["b"])}, "its outputs are scores"),
    "other-name": ("network", IDS | PAST, LOGITS | PRESENT, "none is named model.onnx"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_for_its_reason(name: str, tmp_path: Path) -> None:
    file, inputs, outputs, cause = REFUSED[name]
    folder = fill(tmp_path / "m")
    stub(folder / f"{file}.onnx", inputs, outputs)
    with pytest.raises(ModelLoadFailed, match=cause) as caught, running(folder):
        pass
    assert caught.value.plugin == "onnx"


def test_a_graph_that_ignores_its_past_is_refused(tmp_path: Path) -> None:
    """Its inputs and outputs are right, and its answers would be wrong without a word."""
    folder = fill(tmp_path / "m")
    model = graph("concatenated")
    bias = next(n for n in model.graph.node if n.op_type == "Concat" and "past" in n.input[0])
    other = next(n for n in model.graph.node if "past_key_values.1.key" in n.input)
    other.input[0], bias.input[0] = bias.input[0], other.input[0]
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadFailed, match="works in a way that is unknown"), running(folder):
        pass


def test_a_graph_that_mixes_up_rows_computes_them_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its positions are counted from the padded length, as older exports do."""
    folder = fill(tmp_path / "m")
    model = graph("concatenated")
    nodes = model.graph.node
    length = next(n for n in nodes if n.op_type == "Shape" and n.input[0] == "attention_mask")
    rows = next(n for n in nodes if n.op_type == "Range" and n.name != nodes[0].name)
    assert length is not rows
    for node in nodes:
        if "position_ids" in node.input:
            node.input[list(node.input).index("position_ids")] = "wrong_positions"
    made = _positions_of_the_padded_text(model)
    rest = list(nodes)
    del nodes[:]
    nodes.extend([*made, *rest])
    inputs = model.graph.input
    inputs.remove(next(value for value in inputs if value.name == "position_ids"))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with running(folder) as runner, running(directory("concatenated")) as good:
        assert not runner._batches
        assert "one by one" in caplog.text
        assert "one sequence at a time" in runner.info.description
        for text in ((0, 0, [5, 6, 7]), (1, 0, [8] * 9)):
            forward(runner, text)
            forward(good, text)
        parts = ((0, 3, [9]), (1, 9, [9]))
        np.testing.assert_allclose(forward(runner, *parts), forward(good, *parts), atol=2e-3)


def _positions_of_the_padded_text(model: Any) -> list[Any]:
    """Nodes for positions total-length … total-1, the same in each row."""

    def constant(name: str, value: int) -> str:
        array = np.asarray(value, np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    one = constant("w_one", 1)
    axis = "w_axis"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), axis))
    return [
        helper.make_node("Shape", ["attention_mask"], ["w_mask"]),
        helper.make_node("Gather", ["w_mask", one], ["w_total"], axis=0),
        helper.make_node("Shape", ["input_ids"], ["w_ids"]),
        helper.make_node("Gather", ["w_ids", one], ["w_length"], axis=0),
        helper.make_node("Sub", ["w_total", "w_length"], ["w_past"]),
        helper.make_node("Range", ["w_past", "w_total", one], ["w_row"]),
        helper.make_node("Unsqueeze", ["w_row", axis], ["w_rows"]),
        helper.make_node("Expand", ["w_rows", "w_ids"], ["wrong_positions"]),
    ]


def test_the_probe_needs_no_more_than_it_says() -> None:
    assert max(probe._LENGTHS) + 2 <= probe.TOKENS
    assert len(probe._LENGTHS) < probe.SEQUENCES


def test_missing_directories_and_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match="does not exist"):
        find(tmp_path / "nothing", None, "cpu")
    with pytest.raises(ModelFileInvalid, match=r"has no .onnx file; it has nothing"):
        find(tmp_path, None, "cpu")
    (tmp_path / "phi-4").mkdir()
    with pytest.raises(ModelFileInvalid, match="Did you mean 'phi-4'"):
        find(tmp_path / "phi-3", None, "cpu")


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("config.json", None, "config.json does not exist"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[" * 10**5, "config.json cannot be read"),
        ("config.json", "{}", "how long the model's context is"),
        ("tokenizer.json", None, "tokenizer.json does not exist"),
        ("tokenizer.json", "{}", "tokenizer.json"),
    ],
)
def test_files_beside_the_graph(file: str, content: str | None, cause: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "m")
    (folder / "model.onnx").write_bytes(graph("shared").SerializeToString())
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises((ModelFileInvalid, ModelLoadFailed), match=cause), running(folder):
        pass
