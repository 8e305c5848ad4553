"""Documentation that fails the build: every Python and TOML block in the README is used."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from themis_core.config.assemble import _Assembly
from themis_core.config.sources import RawConfig
from themis_core.plugins import Registry

from .conftest import ROOT, clean_environment

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "docs/configuration.md",
    *sorted(ROOT.glob("plugins/*/README.md")),
]


def blocks(language: str) -> list[ParameterSet]:
    found = []
    for path in DOCUMENTS:
        for i, text in enumerate(re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.S)):
            found.append(pytest.param(text, id=f"{path.relative_to(ROOT)}-{i}"))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_blocks_are_valid_configuration(text: str) -> None:
    data = tomllib.loads(text)
    if "project" in data:
        pytest.skip("a pyproject.toml, not a configuration")
    assert _Assembly(RawConfig(data, "README"), Registry()).config().models


def test_the_forty_line_backend_has_forty_lines() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Your own backend in 40 lines") :]
    found = re.search(r"```python\n(.*?)```", section, re.S)
    assert found is not None
    lines = [line for line in found[1].splitlines() if line.strip()]
    assert len(lines) <= 40


def test_links_lead_somewhere() -> None:
    for path in [*DOCUMENTS, ROOT / "ARCHITECTURE.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_architecture_is_short_and_names_real_files() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= 150
    names = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    for name in re.findall(r"`([\w/.]+\.py)`", text):
        assert (ROOT / name).exists() or Path(name).name in names, name
