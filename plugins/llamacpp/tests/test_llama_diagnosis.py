"""What `themis doctor` tells of llama.cpp and of models that it does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from themis_llamacpp import diagnosis, memory
from themis_llamacpp.plugin import themis_diagnose, themis_diagnose_model
from themis_llamacpp.settings import LlamaCppSettings
from themis_tiny_model import path

GGUF = str(path("gguf-f16"))


def test_the_library_tells_its_version_features_and_devices() -> None:
    pytest.importorskip("llama_cpp")
    library, gpu = list(themis_diagnose())[:2]
    assert library.level == "ok"
    assert library.data["version"] in library.message
    assert library.data["devices"]
    assert gpu.subject == "llama.cpp GPU"


def test_a_library_that_cannot_be_loaded_is_an_error() -> None:
    code = (
        "import sys; sys.modules['llama_cpp.llama_cpp'] = None\n"
        "from themis_llamacpp.plugin import themis_diagnose\n"
        "found, = themis_diagnose()\nassert found.level == 'error', found\n"
        "assert 'llama_cpp' in found.message, found\nassert found.remedy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("CPU : SSE3 = 1 | AVX = 1 | AVX512 = 0 | ", ["SSE3", "AVX"]),
        ("CUDA : ARCHS = 890 | FORCE_MMQ = 0 | CPU : NEON = 1 |", ["ARCHS", "NEON"]),
        ("", []),
        ("nonsense", []),
    ],
)
def test_the_build_is_read_from_its_own_words(text: str, features: list[str]) -> None:
    assert diagnosis._built_for(text) == features


@pytest.mark.parametrize(("lacking", "level"), [(["AVX2"], "warning"), (["AVX512"], "note")])
def test_what_the_build_does_not_use_is_told(lacking: list[str], level: str) -> None:
    (found,) = diagnosis._slower(lacking)
    assert found.level == level
    assert lacking[0] in found.message
    assert not list(diagnosis._slower([]))


def test_a_model_is_described_and_planned_without_being_loaded() -> None:
    settings = LlamaCppSettings(
        path=GGUF,
        speculation="draft",
        draft_path=GGUF,
        adapters={"de": str(path("lora-german-gguf")), "odd": GGUF},
        prefix_ram_mib=3,
    )
    found = {finding.subject: finding for finding in themis_diagnose_model("llamacpp", settings)}
    assert "llama, 2.1 M parameters F16" in found["path"].message
    assert found["adapters.de"].level == "ok"
    assert found["adapters.odd"].level == "error"
    plan = found["memory"].data
    assert plan["weights"] == 2 * Path(GGUF).stat().st_size
    assert plan["bytes"] == plan["weights"] + plan["kv_cache"] + (3 << 20)


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"<html>")
    (found,) = themis_diagnose_model("llamacpp", LlamaCppSettings(path=str(tmp_path / "m.gguf")))
    assert (found.level, found.subject) == ("error", "path")
    assert "HTML" in found.message


def test_what_cannot_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (diagnosis, memory):
        monkeypatch.setattr(module, "memory_limit", lambda: 1 << 20)
    found = list(themis_diagnose_model("llamacpp", LlamaCppSettings(path=GGUF)))[-1]
    assert (found.level, found.subject) == ("error", "memory")
    assert "There are 1.0 MiB" in found.message
