"""Broken model files: each gives its true cause, and the process lives."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto

from themis_core.errors import ModelFileInvalid
from themis_onnx import onnx_file, protobuf
from themis_tiny_model import path

from .onnx_models import LAYOUTS, directory, fill, graph

GOOD = path("hf") / "model.onnx"
DATA = GOOD.read_bytes()
WEIGHTS = path("hf") / "model.safetensors"


def place(**details: str) -> Callable[[], bytes]:
    """The graph with other details about where one weight lies."""

    def make() -> bytes:
        model = onnx.load_from_string(DATA)
        weight = next(w for w in model.graph.initializer if w.external_data)
        for entry in weight.external_data:
            entry.value = details.get(entry.key, entry.value)
        return bytes(model.SerializeToString())

    return make


def larger() -> bytes:
    model = onnx.load_from_string(DATA)
    weight = next(w for w in model.graph.initializer if w.external_data)
    weight.dims[0] *= 1000
    return bytes(model.SerializeToString())


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "one-byte": (lambda: DATA[:1], "truncated at 1 byte"),
    "100-bytes": (lambda: DATA[:100], "truncated at 100 bytes"),
    "half": (lambda: DATA[: len(DATA) // 2], "truncated"),
    "last-byte-missing": (lambda: DATA[:-1], "truncated"),
    "noise": (lambda: random.Random(3).randbytes(5000), "it is no ONNX file|truncated"),
    "zeros": (lambda: bytes(5000), "it is no ONNX file"),
    "html": (lambda: b"<!DOCTYPE html><p>404", "an HTML page"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
    "zip": (lambda: b"PK\x03\x04" + bytes(100), "zip archive"),
    "json": (lambda: b'{"a": 1}', "a JSON text"),
    "gguf": (path("gguf-q8_0").read_bytes, "for the backend llamacpp"),
    "no-graph": (lambda: protobuf.number_field(1, 8), "it has no graph"),
    "empty-graph": (lambda: protobuf.bytes_field(7, b""), "its graph is empty"),
    "outside": (place(location="../model.safetensors"), "outside the directory"),
    "absolute": (place(location="/etc/passwd"), "outside the directory"),
    "other-file": (place(location="weights.bin"), "weights.bin is missing"),
    "beyond": (place(offset="99999999"), "truncated, or belongs to another model"),
    "negative": (place(offset="-1"), "outside the directory"),
    "no-number": (place(offset="x"), "no number"),
    "short-weight": (place(length="8"), "has 8 bytes"),
    "large-weight": (larger, "bytes"),
}


def broken(folder: Path, name: str) -> Path:
    """A model directory whose graph is broken in this way."""
    fill(folder)
    (folder / "model.onnx").write_bytes(BROKEN[name][0]())
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_the_cause_is_named(name: str, tmp_path: Path) -> None:
    file = broken(tmp_path / "model", name) / "model.onnx"
    with pytest.raises(ModelFileInvalid, match=BROKEN[name][1]) as caught:
        onnx_file.read(file)
    assert str(file.parent) in str(caught.value)


def test_missing_and_truncated_weights(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    (folder / "model.onnx").write_bytes(DATA)
    weights = folder / "model.safetensors"
    weights.write_bytes(WEIGHTS.read_bytes()[:-1])
    with pytest.raises(ModelFileInvalid, match=r"truncated.*ends at byte"):
        onnx_file.read(folder / "model.onnx")
    weights.unlink()
    with pytest.raises(ModelFileInvalid, match=r"model.safetensors is missing"):
        onnx_file.read(folder / "model.onnx")


def test_missing_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "model_q4.onnx").write_bytes(DATA)
    with pytest.raises(ModelFileInvalid, match=r"no such file\. Did you mean 'model_q4.onnx'"):
        onnx_file.read(tmp_path / "model_q8.onnx")
    with pytest.raises(ModelFileInvalid, match="it is a directory"):
        onnx_file.read(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_is_what_the_library_reads(layout: Any) -> None:
    file = directory(layout) / "model.onnx"
    found, model = onnx_file.read(file), onnx.load(file, load_external_data=False)
    assert [node.name for node in found.nodes] == [node.name for node in model.graph.node]
    assert [n.inputs for n in found.nodes] == [tuple(n.input) for n in model.graph.node]
    assert [n.outputs for n in found.nodes] == [tuple(n.output) for n in model.graph.node]
    assert found.inputs == [value.name for value in model.graph.input]
    assert found.outputs == [value.name for value in model.graph.output]
    for weight in model.graph.initializer:
        mine = found.weights[weight.name]
        assert (mine.kind, mine.shape) == (weight.data_type, tuple(weight.dims))
        assert (mine.place is not None) == (weight.data_location == TensorProto.EXTERNAL)
    assert found.files == [file, file.parent / "model.safetensors"]


@settings(max_examples=200)
@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=16), st.integers(0, 20_000))
def test_any_damage_is_an_error_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, offset: int, damage: bytes, cut: int
) -> None:
    data = bytearray(DATA)
    data[offset : offset + len(damage)] = damage
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "model.safetensors").symlink_to(WEIGHTS)
    (folder / "model.onnx").write_bytes(bytes(data[: len(data) - cut]))
    try:
        onnx_file.read(folder / "model.onnx")
    except ModelFileInvalid:
        return


@given(st.lists(st.tuples(st.integers(1, 2**20), st.binary() | st.integers(0, 2**63))))
def test_messages_come_back_as_they_were_written(parts: list[tuple[int, bytes | int]]) -> None:
    data = b"".join(
        protobuf.number_field(number, value)
        if isinstance(value, int)
        else protobuf.bytes_field(number, value)
        for number, value in parts
    )
    view = memoryview(data)
    found = [
        (f.number, f.value if isinstance(v, int) else bytes(view[f.start : f.end]))
        for f, (_, v) in zip(protobuf.fields(view), parts, strict=True)
    ]
    assert found == parts


@given(st.binary())
def test_any_bytes_are_fields_or_malformed(data: bytes) -> None:
    end = 0
    try:
        for field in protobuf.fields(memoryview(data)):
            assert field.key == end
            assert field.key < field.start <= field.end <= len(data) or field.start <= field.end
            end = field.end
    except protobuf.Malformed:
        return
    assert end == len(data)


CHILD = """
import sys
from pathlib import Path
from typing import Any
from themis_core.errors import ThemisError
from themis_onnx.loading import load
from themis_onnx.settings import OnnxSettings
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load(OnnxSettings(path=str(folder), threads=1, context=64, parallel=1)).close()
    except ThemisError as error:
        print(folder.name, error.code, flush=True)
    else:
        print(folder.name, "loaded", flush=True)
print("alive")
"""


def lying(folder: Path, seed: int) -> Path:
    """A directory whose graph has three random changes."""
    chance, data = random.Random(seed), bytearray(DATA)
    for _ in range(3):
        offset = chance.randrange(len(data) - 4)
        data[offset : offset + 2] = chance.randbytes(2)
    folder.mkdir()
    for file in path("hf").iterdir():
        if file.suffix != ".onnx":
            (folder / file.name).symlink_to(file)
    (folder / "model.onnx").write_bytes(bytes(data))
    return folder


def test_no_broken_file_ends_the_process(tmp_path: Path) -> None:
    """Through the real loader, with random damage besides the kinds above."""
    pytest.importorskip("onnxruntime")
    for name in BROKEN:
        broken(tmp_path / name, name)
    for seed in range(60):
        lying(tmp_path / f"random-{seed:02}", seed)
    # Shapes that lie: ONNX Runtime finds out when it loads or when it computes.
    for seed, (old, new) in enumerate([(b"batch", b"butch"), (b"past", b"post")]):
        folder = lying(tmp_path / f"names-{seed}", 99)
        (folder / "model.onnx").write_bytes(DATA.replace(old, new))
    model = graph("shared")
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "kv_num_heads":
                attribute.i = 4
    (lying(tmp_path / "heads", 99) / "model.onnx").write_bytes(model.SerializeToString())
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    assert lines[-1] == "alive"
    told = dict(line.split() for line in lines[:-1])
    assert len(told) == len(list(tmp_path.iterdir()))
    assert {told[name] for name in BROKEN} == {"model_file_invalid"}
    assert told["heads"] == "model_load_failed"
    assert set(told.values()) <= {"loaded", "model_file_invalid", "model_load_failed"}
