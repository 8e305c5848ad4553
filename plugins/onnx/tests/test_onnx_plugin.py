"""Discovery is quick, nothing calls home, and the backend keeps the contract."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from themis_core.contracts import Backend
from themis_core.errors import ModelLoadFailed
from themis_onnx import ort
from themis_onnx.plugin import themis_backends
from themis_onnx.settings import OnnxSettings
from themis_testkit import BackendConformance
from themis_testkit.conformance.embeddings import EmbeddingChecks
from themis_tiny_model import path

from .onnx_models import directory, running


def test_describing_the_engine_does_not_import_it() -> None:
    code = (
        "import themis_onnx.plugin as p, sys; p.themis_backends(); "
        "assert not {'onnxruntime', 'numpy', 'themis_engine', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_setting_is_described_and_documented() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in OnnxSettings.__struct_fields__:
        assert f"`{name}`" in readme
    assert themis_backends()[0].settings is OnnxSettings


CHILD = """
import sys
from themis_onnx.loading import load
from themis_onnx.settings import OnnxSettings
import numpy as np
from themis_engine import Batch
runner = load(OnnxSettings(path=sys.argv[1], threads=1))
one = np.zeros(1, np.int32)
runner.forward(Batch(one, one, one, one))
runner.close()
"""


def test_nothing_is_written_into_the_home(tmp_path: Path) -> None:
    """ONNX Runtime's wheels upload usage data, unless told not to before they are imported."""
    pytest.importorskip("onnxruntime")
    keep = {k: v for k, v in os.environ.items() if k != ort.TELEMETRY and "XDG" not in k}
    subprocess.run(
        [sys.executable, "-c", CHILD, str(path("hf"))],
        env={**keep, "HOME": str(tmp_path)},
        check=True,
        timeout=60,
    )
    assert list(tmp_path.rglob("*")) == []


def test_whoever_wants_telemetry_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv(ort.TELEMETRY, "0")
    ort.runtime()
    assert os.environ[ort.TELEMETRY] == "0"
    monkeypatch.delenv(ort.TELEMETRY)
    ort.runtime()
    assert os.environ.pop(ort.TELEMETRY) == "1"


def test_without_onnx_runtime_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelLoadFailed, match=r"themis-onnx\[cpu\]"), running(path("hf")):
        pass


def test_a_provider_that_is_not_really_active_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libraries are missing, ONNX Runtime goes on with the processor, without a word."""
    onnxruntime = pytest.importorskip("onnxruntime")
    name = "CUDAExecutionProvider"
    available = [name, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    real = onnxruntime.InferenceSession

    def silently_on_the_processor(*given: Any, providers: list[str]) -> Any:
        return real(*given, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", silently_on_the_processor)
    with (
        pytest.raises(ModelLoadFailed, match="would compute with CPUExecutionProvider"),
        running(path("hf"), provider="cuda"),
    ):
        pass


class TestSharedCache(BackendConformance):
    """ONNX Runtime on the bundled model, with one buffer for past and present."""

    caches = True
    layout: ClassVar[Any] = "shared"
    changes: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def adapter_files(self) -> list[tuple[str, str]]:
        return [(name, str(path(f"lora-{name}-peft"))) for name in ("german", "json")]

    @pytest.fixture
    def backend_factory(self) -> Callable[[], Backend]:
        pytest.importorskip("onnxruntime")
        from themis_onnx.backend import create

        values: dict[str, Any] = {"path": str(directory(self.layout)), "threads": 1, "parallel": 16}
        settings = values | self.changes
        return lambda: create(OnnxSettings(**settings))

    @pytest.fixture
    def broken_backend_factory(self, tmp_path: Path) -> Callable[[], Backend]:
        from themis_onnx.backend import create

        return lambda: create(OnnxSettings(path=str(tmp_path)))


class TestConcatenatedCache(TestSharedCache):
    """The same model in the other layout."""

    layout = "concatenated"


class TestLookup(TestSharedCache):
    """Guessing from the text itself."""

    changes = {"speculation": "lookup"}


class TestDraft(TestConcatenatedCache):
    """Guessing with the draft model, which has the other layout."""

    changes = {"speculation": "draft", "draft_path": str(path("draft-hf"))}


class TestEncoder(EmbeddingChecks):
    """ONNX Runtime on an encoder, which only embeds."""

    @pytest.fixture
    def backend_factory(self, tmp_path: Path) -> Callable[[], Backend]:
        pytest.importorskip("onnxruntime")
        from themis_onnx.backend import create

        from .bert_graph import export, random_bert

        folder = export(random_bert(tmp_path / "source"), tmp_path / "model")
        return lambda: create(OnnxSettings(path=str(folder), threads=1, parallel=4))
