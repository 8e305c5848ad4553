from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.errors import ModelFileInvalid
from themis_testkit.reference.safetensors import read_safetensors

from .safetensors_file import write_safetensors


def test_three_types(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    values = np.array([[1.5, -2.0], [0.0, 65504.0]], np.float32)
    upper_halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    tensors: dict[str, Any] = {
        "f32": values,
        "f16": values.astype(np.float16),
        "bf16": upper_halves,
    }
    write_safetensors(file, tensors, {"bf16": "BF16"})
    read = read_safetensors(file)
    assert all(tensor.dtype == np.float32 for tensor in read.values())
    np.testing.assert_array_equal(read["f32"], values)
    np.testing.assert_array_equal(read["f16"], values)
    np.testing.assert_allclose(read["bf16"], values, rtol=2**-7)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(file, {"s": np.array(3.0, np.float32), "e": np.zeros((0, 4), np.float32)})
    read = read_safetensors(file)
    assert read["s"] == 3.0
    assert read["e"].shape == (0, 4)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileInvalid, match="cannot be read"):
        read_safetensors(tmp_path / "none")


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> object:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (entry(dtype="I8"), "has type I8"),
        (entry(offsets=(0, 12)), "is truncated"),
        (entry(offsets=(-4, 4)), "is truncated"),
        (entry(offsets=(8, 0)), "is truncated"),
        (entry(offsets=(0, 4)), "of shape"),
        (entry(shape=(-1, -2)), "of shape"),
        (entry(shape=(2**62, 4)), "of shape"),
        (entry(shape="2"), "damaged header"),
        (entry(offsets=(0,)), "damaged header"),
        ({"w": {}}, "damaged header"),
        ([], "damaged header"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: object, why: str) -> None:
    file = tmp_path / "x.safetensors"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ModelFileInvalid, match=why):
        read_safetensors(file)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**60), b"\xff" * 64])
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelFileInvalid):
        read_safetensors(file)


@given(data=st.data())
def test_any_damage_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("damage") / "x.safetensors"
    write_safetensors(file, {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)})
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    try:
        read = read_safetensors(file)
    except ModelFileInvalid:
        return
    assert sum(tensor.size for tensor in read.values()) <= 8
