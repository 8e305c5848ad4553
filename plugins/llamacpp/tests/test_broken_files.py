"""Broken model files: each gives its true cause, and the process lives."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_core.errors import ModelFileInvalid
from themis_llamacpp import gguf_header
from themis_tiny_model import path

GOOD = path("gguf-f16")
DATA = GOOD.read_bytes()


def changed(offset: int, form: str, value: int) -> bytes:
    data = bytearray(DATA)
    struct.pack_into(form, data, offset, value)
    return bytes(data)


def noise(count: int) -> bytes:
    return random.Random(1).randbytes(count)


SAFETENSORS = path("hf") / "model.safetensors"

BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "10-bytes": (lambda: DATA[:10], "ends within its header"),
    "2000-bytes": (lambda: DATA[:2000], "more than fit in the file"),
    "half": (lambda: DATA[: len(DATA) // 2], "its tensors need"),
    "last-byte-missing": (lambda: DATA[:-1], "its tensors need"),
    "wrong-magic": (lambda: b"GGUX" + DATA[4:], "it begins with b'GGUX'"),
    "version-1": (lambda: changed(4, "<I", 1), "GGUF version 1"),
    "version-99": (lambda: changed(4, "<I", 99), "GGUF version 99"),
    "big-endian": (lambda: changed(4, ">I", 3), "big-endian"),
    "many-tensors": (lambda: changed(8, "<Q", 2**62), "tensors, more than"),
    "many-pairs": (lambda: changed(16, "<Q", 2**62), "key-value pairs"),
    "long-key": (lambda: changed(24, "<Q", 2**60), "claims"),
    "no-tensors": (lambda: changed(8, "<Q", 0), "no weights"),
    "noise": (lambda: noise(5000), "it is no GGUF file"),
    "noise-after-magic": (lambda: DATA[:24] + noise(len(DATA) - 24), "header|claims|unknown"),
    "html": (lambda: b"<!DOCTYPE html><p>404", "an HTML page"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
    "zip": (lambda: b"PK\x03\x04" + noise(100), "zip archive"),
    "json": (lambda: b'{"a": 1}', "a JSON text"),
    "safetensors": (SAFETENSORS.read_bytes, "a safetensors file"),
    "adapter": (path("lora-json-gguf").read_bytes, "a LoRA adapter, not a model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_cause_is_named(name: str, tmp_path: Path) -> None:
    make, cause = BROKEN[name]
    file = tmp_path / "model.gguf"
    file.write_bytes(make())
    with pytest.raises(ModelFileInvalid, match=cause) as caught:
        gguf_header.check(file)
    assert str(file) in str(caught.value)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "qwen.gguf").write_bytes(DATA)
    with pytest.raises(ModelFileInvalid, match=r"no such file\. Did you mean 'qwen.gguf'"):
        gguf_header.check(tmp_path / "qven.gguf")
    with pytest.raises(ModelFileInvalid, match="it is a directory"):
        gguf_header.check(tmp_path)


def test_missing_parts_are_listed(tmp_path: Path) -> None:
    # Rename an integer key of the same length to `split.count`, which then says 2 or more.
    file = tmp_path / "big-00001-of-00003.gguf"
    key = b"general.file_type"
    assert DATA.count(key) == 1
    start = DATA.index(key) - 8
    renamed = struct.pack("<Q", 11) + b"split.count" + struct.pack("<II", 4, 3)
    file.write_bytes(DATA[:start] + renamed + DATA[start + 8 + len(key) + 8 :] + b"\0" * 64)
    with pytest.raises(ModelFileInvalid, match=r"big-00002-of-00003.gguf, big-00003-of-00003"):
        gguf_header.check(file)


def test_the_good_file_is_good() -> None:
    header = gguf_header.check(GOOD)
    assert header.metadata["general.architecture"] == "llama"
    assert header.data_end <= len(DATA)


HEADER = len(DATA) - gguf_header.read(GOOD).data_end + 20_000


@settings(max_examples=150)
@given(st.integers(0, 30_000), st.binary(min_size=1, max_size=16), st.integers(0, 40_000))
def test_any_damage_is_an_error_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, offset: int, damage: bytes, cut: int
) -> None:
    data = bytearray(DATA)
    data[offset : offset + len(damage)] = damage
    file = tmp_path_factory.mktemp("damaged") / "model.gguf"
    file.write_bytes(bytes(data[: len(data) - cut]))
    try:
        gguf_header.check(file)
    except ModelFileInvalid:
        return


CHILD = """
import sys
from pathlib import Path
from themis_core.errors import ThemisError
from themis_llamacpp.runner import LlamaRunner
from themis_llamacpp.settings import LlamaCppSettings
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        LlamaRunner(LlamaCppSettings(path=str(file), threads=1, context=64, parallel=1)).close()
    except ThemisError as error:
        print(file.name, error.code, flush=True)
    else:
        print(file.name, "loaded", flush=True)
print("alive")
"""


def test_no_broken_file_ends_the_process(tmp_path: Path) -> None:
    """Through the real loader, with random damage in the header besides the kinds above."""
    pytest.importorskip("llama_cpp")
    for name, (make, _) in BROKEN.items():
        (tmp_path / name).write_bytes(make())
    for seed in range(25):
        chance, data = random.Random(seed), bytearray(DATA)
        for _ in range(3):
            offset = chance.randrange(24, 30_000)
            data[offset : offset + 4] = chance.randbytes(4)
        (tmp_path / f"random-{seed:02}").write_bytes(bytes(data))
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert lines[-1] == "alive"
    told = dict(line.split() for line in lines[:-1])
    for name in BROKEN:
        assert told[name] == "model_file_invalid"
    assert len(told) == len(BROKEN) + 25
