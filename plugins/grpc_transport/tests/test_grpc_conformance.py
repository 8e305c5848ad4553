"""The conformance suite over gRPC: nobody can tell.

Echo over both services, the others over one each; the transports' matrix has all over both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

import themis_tiny_model
from themis_core.contracts import Backend
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_testkit import BackendConformance
from themis_testkit.conformance import BackendFactory
from themis_testkit.plugin import ReferenceSettings
from themis_testkit.reference.backend import create as create_reference

Serve = Callable[[Backend], Backend]


class TestEchoServed(BackendConformance):
    prompt: ClassVar[str] = "The quick brown fox jumps over the lazy dog. " * 24
    has_one_answer: ClassVar[bool] = True

    @pytest.fixture
    def backend_factory(self, serve: Serve) -> BackendFactory:
        return lambda: serve(EchoBackend(EchoSettings(delay=0.001)))


class TestReferenceServed(BackendConformance):
    @pytest.fixture
    def backend_factory(self, serve_inference: Serve) -> BackendFactory:
        settings = ReferenceSettings(path=str(themis_tiny_model.path("hf")))
        return lambda: serve_inference(create_reference(settings))

    @pytest.fixture
    def broken_backend_factory(self, serve_inference: Serve, tmp_path: Path) -> BackendFactory:
        settings = ReferenceSettings(path=str(tmp_path / "missing"))
        return lambda: serve_inference(create_reference(settings))


class TestLlamaCppServed(BackendConformance):
    @pytest.fixture
    def backend_factory(self, serve_worker: Serve) -> BackendFactory:
        pytest.importorskip("llama_cpp")
        from themis_llamacpp.backend import create
        from themis_llamacpp.settings import LlamaCppSettings

        path = str(themis_tiny_model.path("gguf-f16"))
        settings = LlamaCppSettings(path=path, threads=1, parallel=16)
        return lambda: serve_worker(create(settings))


class TestOnnxServed(BackendConformance):
    @pytest.fixture
    def backend_factory(self, serve_worker: Serve) -> BackendFactory:
        pytest.importorskip("onnxruntime")
        from themis_onnx.backend import create
        from themis_onnx.settings import OnnxSettings

        settings = OnnxSettings(path=str(themis_tiny_model.path("hf")), threads=1, parallel=16)
        return lambda: serve_worker(create(settings))
