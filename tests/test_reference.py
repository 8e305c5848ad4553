"""The reference pages are what the code says, in both directions."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from themis_core import errors
from themis_core.hooks import specs

from .conftest import ROOT

pytestmark = pytest.mark.endurance  # About Themis itself, whatever the versions.

FOLDER = ROOT / "docs" / "reference"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", generator().PAGES)
def test_the_page_is_what_the_code_says(page: str) -> None:
    pytest.importorskip("themis_openai_server")
    try:
        expected = generator().PAGES[page]()
    except SystemExit as missing:
        pytest.skip(str(missing))
    message = f"run: python docs/reference/generate.py ({page})"
    assert (FOLDER / page).read_text("utf-8") == expected, message


def test_the_pages_are_all_there_are() -> None:
    pages = {path.name for path in FOLDER.glob("*.md")} - {"README.md"}
    assert pages == set(generator().PAGES)
    linked = set(re.findall(r"\]\((\w+\.md)\)", (FOLDER / "README.md").read_text()))
    assert linked == pages


def test_no_hook_and_no_code_is_left_out() -> None:
    """The generator reads the source; this looks from the other side, at what is imported."""
    hooks = {name for name in vars(specs) if name.startswith("themis_")}
    headings = re.findall(r"^## `(\w+)`", (FOLDER / "hooks.md").read_text(), re.M)
    assert hooks <= set(headings)
    codes = re.findall(r"^\| \[`(\w+)`\]", (FOLDER / "errors.md").read_text(), re.M)
    assert sorted(codes) == sorted({kind.code for kind in errors.all_error_types()})
    kinds = {name for name in vars(errors) if name[0].isupper() and name not in ("Any", "ClassVar")}
    kinds.remove("ThemisError")
    classes = set(re.findall(r"^\| \[.*?\| `(\w+)` \|", (FOLDER / "errors.md").read_text(), re.M))
    assert classes == kinds
