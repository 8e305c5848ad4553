"""Imports point one way, between the packages and between the rooms of the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = [
    "messages",
    "contracts",
    "protocol",
    "hooks",
    "plugins",
    "config",
    "worker",
    "runtime",
    "doctor",
    "cli",
]
SHARED = {"errors", "suggest", "__version__"}


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                module = node.module or ""
                if module == "themis_core":
                    yield from ((path, f"themis_core.{alias.name}") for alias in node.names)
                else:
                    yield path, module


def test_the_core_imports_no_plugin_no_engine_and_no_numpy() -> None:
    allowed = {"click", "msgspec", "packaging", "pluggy", "themis_core", "uvloop"}
    for path, module in imports(ROOT / "themis_core/src"):
        top = module.partition(".")[0]
        assert top in sys.stdlib_module_names | allowed, f"{path} imports {module}"


def test_the_engine_imports_no_plugin() -> None:
    for path, module in imports(ROOT / "themis_engine/src"):
        top = module.partition(".")[0]
        assert not top.startswith("themis_") or top in {"themis_core", "themis_engine"}, path


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_before_them(room: str) -> None:
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) | SHARED
    if room == "cli":
        allowed.add("open")  # The front of the house, which the commands use as users do.
    for path, module in imports(ROOT / "themis_core/src/themis_core" / room):
        if module.startswith("themis_core."):
            assert module.split(".")[1] in allowed, f"{path} imports {module}"


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import themis_core", {"asyncio", "msgspec", "pluggy", "numpy"}),
        ("import themis_core.cli.main", {"asyncio", "msgspec", "pluggy", "numpy"}),
        ("import themis_core.hooks", {"asyncio", "numpy", "themis_engine"}),
    ],
)
def test_what_must_stay_quick_imports_little(statement: str, forbidden: set[str]) -> None:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not forbidden & set(result.stdout.split())
