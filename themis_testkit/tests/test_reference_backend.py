"""The reference backend keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

import themis_tiny_model
from themis_testkit import BackendConformance
from themis_testkit.conformance import BackendFactory
from themis_testkit.plugin import ReferenceSettings
from themis_testkit.reference.backend import create


class TestReference(BackendConformance):
    caches = True

    @pytest.fixture
    def backend_factory(self) -> BackendFactory:
        settings = ReferenceSettings(path=str(themis_tiny_model.path("hf")))
        return lambda: create(settings)

    @pytest.fixture
    def adapter_files(self) -> list[tuple[str, str]]:
        names = ("german", "json")
        return [(name, str(themis_tiny_model.path(f"lora-{name}-peft"))) for name in names]

    @pytest.fixture
    def broken_backend_factory(self, tmp_path: Path) -> BackendFactory:
        settings = ReferenceSettings(path=str(tmp_path / "missing"))
        return lambda: create(settings)
