"""The shipped ONNX graphs: what the script writes, pointing at the shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import themis_tiny_model

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")
numpy_io = pytest.importorskip("safetensors.numpy")

LAYOUTS = ["shared", "concatenated"]


@pytest.mark.parametrize("name", ["hf", "draft-hf"])
def test_the_shipped_graph_is_what_the_script_writes(name: str, tmp_path: Path) -> None:
    from train.export_onnx import write

    folder = themis_tiny_model.path(name)
    made, shipped = (
        onnx.load(file, load_external_data=False)
        for file in (write(folder, "shared", tmp_path / "model.onnx"), folder / "model.onnx")
    )
    assert made == shipped


@pytest.mark.parametrize("name", ["hf", "draft-hf"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_its_weights_are_those_of_the_safetensors(name: str, layout: Any, tmp_path: Path) -> None:
    """Whatever the graph calls a weight has the numbers that lie under that name."""
    from train.export_onnx import write

    folder = themis_tiny_model.path(name)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = onnx.load(write(folder, layout, tmp_path / "model.onnx"))
    stored = numpy_io.load_file(folder / "model.safetensors")
    found = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    for key, tensor in stored.items():
        np.testing.assert_array_equal(found[key], tensor)
    assert len(model.SerializeToString()) > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_graph_is_valid(layout: Any, tmp_path: Path) -> None:
    from train.export_onnx import write

    folder = themis_tiny_model.path("hf")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    onnx.checker.check_model(str(write(folder, layout, tmp_path / "model.onnx")))
