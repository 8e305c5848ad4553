"""The repository's own rules that a machine can check."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from .conftest import ROOT

MEMBERS = sorted(path.parent for path in ROOT.glob("*/pyproject.toml")) + sorted(
    path.parent for path in ROOT.glob("plugins/*/pyproject.toml")
)


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_every_member_is_set_up_everywhere() -> None:
    names = {str(member.relative_to(ROOT)) for member in MEMBERS}
    for script in ("dev.py", "noxfile.py"):
        text = (ROOT / script).read_text()
        for name in names:
            assert f'"{name}' in text, f"{script} does not install {name}"


def test_members_have_a_readme_and_types() -> None:
    for member in MEMBERS:
        assert (member / "README.md").stat().st_size > 0
        assert list(member.glob("src/*/py.typed")), member


def test_dependencies_have_lower_bounds() -> None:
    for member in [ROOT, *MEMBERS]:
        project = tomllib.loads((member / "pyproject.toml").read_text())["project"]
        groups = [
            project.get("dependencies", []),
            *project.get("optional-dependencies", {}).values(),
        ]
        for requirement in (r for group in groups for r in group if not r.startswith("themis[")):
            assert re.search(r">=|==", requirement), f"{member.name}: {requirement}"


def test_model_artefacts_stay_small() -> None:
    suffixes = (".gguf", ".safetensors", ".onnx", ".bin")
    sizes = {name: (ROOT / name).stat().st_size for name in tracked() if name.endswith(suffixes)}
    assert sizes
    assert sum(sizes.values()) < 15_000_000


def test_no_lock_file_and_no_index_in_constraints() -> None:
    names = tracked()
    assert "uv.lock" not in names
    for name in names:
        if name.startswith("constraints/"):
            text = (ROOT / name).read_text()
            assert "://" not in text
            assert "--" not in text
