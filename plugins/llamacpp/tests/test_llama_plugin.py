"""Discovery is quick, and the backend keeps the contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from themis_core.contracts import Backend
from themis_llamacpp.plugin import themis_backends
from themis_llamacpp.settings import LlamaCppSettings
from themis_testkit import BackendConformance
from themis_testkit.conformance.embeddings import EmbeddingChecks
from themis_tiny_model import path


def test_describing_the_engine_does_not_import_it() -> None:
    code = (
        "import themis_llamacpp.plugin as p, sys; p.themis_backends(); "
        "assert not {'llama_cpp', 'numpy', 'themis_engine'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_setting_is_described_and_documented() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in LlamaCppSettings.__struct_fields__:
        assert f"`{name}`" in readme
    assert themis_backends()[0].settings is LlamaCppSettings


class TestLlamaCpp(BackendConformance):
    """llama.cpp on the bundled model."""

    caches = True
    changes: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def adapter_files(self) -> list[tuple[str, str]]:
        return [(name, str(path(f"lora-{name}-gguf"))) for name in ("german", "json")]

    @pytest.fixture
    def backend_factory(self) -> Callable[[], Backend]:
        pytest.importorskip("llama_cpp")
        from themis_llamacpp.backend import create

        values: dict[str, Any] = {"path": str(path("gguf-f16")), "threads": 1, "parallel": 16}
        settings = values | self.changes
        return lambda: create(LlamaCppSettings(**settings))


class TestLlamaCppSplit(TestLlamaCpp):
    """Each sequence with a KV cache of its own."""

    changes = {"kv_unified": False}


class TestLlamaCppLookup(TestLlamaCpp):
    """Guessing from the text itself."""

    changes = {"speculation": "lookup"}


class TestLlamaCppDraft(TestLlamaCpp):
    """Guessing with the draft model."""

    changes = {"speculation": "draft", "draft_path": str(path("draft-gguf-f16"))}


class TestEncoder(EmbeddingChecks):
    """llama.cpp on an encoder, which only embeds."""

    @pytest.fixture
    def backend_factory(self, tmp_path: Path) -> Callable[[], Backend]:
        pytest.importorskip("llama_cpp")
        pytest.importorskip("gguf")
        from themis_llamacpp.backend import create

        from .tiny_models import bert

        bert(tmp_path / "bert.gguf")
        settings = LlamaCppSettings(path=str(tmp_path / "bert.gguf"), threads=1, parallel=4)
        return lambda: create(settings)
