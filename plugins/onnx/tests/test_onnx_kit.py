"""ONNX Runtime's runner keeps the contract of runners, in both layouts."""

from __future__ import annotations

from typing import ClassVar

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from themis_onnx.loading import load
from themis_testkit import RunnerConformance
from themis_testkit.conformance import RunnerFactory

from .onnx_models import LAYOUTS, directory, settings


class TestOnnxRunner(RunnerConformance):
    tolerance: ClassVar[float] = 2e-3

    @pytest.fixture(params=LAYOUTS)
    def runner_factory(self, request: pytest.FixtureRequest) -> RunnerFactory:
        folder = directory(request.param)
        return lambda: load(settings(folder, kv_step=8, kv_tokens=512))
