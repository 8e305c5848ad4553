"""`docs/conformance.md` is right: its blocks run, and it names everything that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import themis_testkit
from themis_testkit import strategies

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
KITS = [name for name in themis_testkit.__all__ if name.endswith("Conformance")]


def test_the_blocks_are_test_modules_that_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) == len(KITS)
    for i, block in enumerate(blocks):
        (tmp_path / f"test_block_{i}.py").write_text(block, encoding="utf-8")
    # The backend's is only collected: its checks run elsewhere.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "-k", "not TestMyBackend", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"\d{3} deselected", result.stdout)


@pytest.mark.parametrize("name", KITS)
def test_each_kit_has_its_row_and_its_attributes(name: str) -> None:
    kit = getattr(themis_testkit, name)
    fixture = name.removesuffix("Conformance").lower() + "_factory"
    checks = sum(check.startswith("test_") for check in dir(kit))
    assert re.search(rf"^\| `{name}` \| `[\w.]+` \| `{fixture}` \| {checks} \|$", TEXT, re.M)
    for cls in kit.__mro__:
        for attribute in getattr(cls, "__annotations__", {}):
            assert f"`{attribute}`" in TEXT, attribute


def test_all_that_is_public_is_named() -> None:
    made_here = {
        name
        for name, value in vars(strategies).items()
        if getattr(value, "__module__", "") == strategies.__name__ and not name.startswith("_")
    }
    for name in {*themis_testkit.__all__, *made_here}:
        assert f"`{name}`" in TEXT, name
        if name not in made_here:
            assert getattr(themis_testkit, name) is not None
