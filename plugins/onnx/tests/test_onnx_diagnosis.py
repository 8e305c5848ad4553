"""What `themis doctor` tells of ONNX Runtime and of models that it does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from themis_onnx.plugin import themis_diagnose, themis_diagnose_model
from themis_onnx.settings import OnnxSettings
from themis_tiny_model import path


def test_a_library_that_cannot_be_loaded_is_an_error() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from themis_onnx.plugin import themis_diagnose\n"
        "found, = themis_diagnose()\nassert found.level == 'error', found\n"
        "assert 'onnxruntime' in found.message, found\nassert found.remedy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_providers_are_those_that_really_compute() -> None:
    pytest.importorskip("onnxruntime")
    found = {finding.subject: finding for finding in themis_diagnose()}
    assert found["ONNX Runtime"].data["version"]
    assert found["CPUExecutionProvider"].data["active"] is True
    assert "AzureExecutionProvider" not in found


def test_a_configured_provider_that_is_not_there_is_an_error() -> None:
    pytest.importorskip("onnxruntime")
    settings = OnnxSettings(path=str(path("hf")), provider="NoSuchExecutionProvider")
    found = next(iter(themis_diagnose_model("onnx", settings)))
    assert (found.level, found.subject) == ("error", "NoSuchExecutionProvider")
    assert found.remedy is not None


def test_a_model_is_described_and_planned_without_being_loaded() -> None:
    pytest.importorskip("onnxruntime")
    from themis_onnx.loading import load
    from themis_onnx.runner import OnnxRunner

    settings = OnnxSettings(path=str(path("hf")), threads=1, kv_tokens=1000)
    found = {finding.subject: finding for finding in themis_diagnose_model("onnx", settings)}
    assert "llama, a decoder of 2.1 M parameters" in found["path"].message
    plan = found["memory"].data
    runner = load(settings)
    try:
        assert isinstance(runner, OnnxRunner)
        signature = runner._steps.signature
        assert plan["kv_cache"] == 1000 * signature.bytes_per_token
        assert plan["weights"] == runner.info.size_bytes
    finally:
        runner.close()


def test_a_directory_without_a_model_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = list(themis_diagnose_model("onnx", OnnxSettings(path=str(tmp_path))))[-1]
    assert (found.level, found.subject) == ("error", "path")
    assert "has no .onnx file" in found.message
