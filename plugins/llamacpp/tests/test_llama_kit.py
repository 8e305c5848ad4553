"""llama.cpp's runner keeps the contract of runners, its KV cache unified or split."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

pytest.importorskip("llama_cpp")

from themis_llamacpp.runner import LlamaRunner
from themis_llamacpp.settings import LlamaCppSettings
from themis_testkit import RunnerConformance
from themis_testkit.conformance import RunnerFactory
from themis_tiny_model import path


def made(**changes: Any) -> LlamaRunner:
    values: dict[str, Any] = {"path": str(path("gguf-f16")), "threads": 1, "parallel": 4}
    return LlamaRunner(LlamaCppSettings(**(values | changes)))


class TestUnified(RunnerConformance):
    tolerance: ClassVar[float] = 2e-2  # Weights and cache are of 16 bits.

    @pytest.fixture
    def runner_factory(self) -> RunnerFactory:
        return lambda: made(kv_tokens=1024)


class TestSplit(RunnerConformance):
    tolerance: ClassVar[float] = 2e-2

    @pytest.fixture
    def runner_factory(self) -> RunnerFactory:
        return lambda: made(kv_unified=False, context=256, kv_tokens=None)
