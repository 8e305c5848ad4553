"""`CONTRIBUTING.md` names every nox session, and no other."""

from __future__ import annotations

import ast
import re

from .conftest import ROOT


def test_every_session_is_documented_and_no_other() -> None:
    functions = [
        node
        for node in ast.parse((ROOT / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any(
            ast.unparse(decorator).startswith("nox.session") for decorator in node.decorator_list
        )
    ]
    assert all(ast.get_docstring(function) for function in functions)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    documented = re.findall(r"^\| [^|]+ \| `(\w+)` \|", text, re.M)
    assert sorted(documented) == sorted(function.name for function in functions)
    listed = re.findall(r"`(\w+)\((\w+)='(\w+)'\)`", text)
    assert {name for name, _, _ in listed} <= set(documented)


def test_the_plugin_session_knows_every_plugin() -> None:
    text = (ROOT / "noxfile.py").read_text()
    for path in ROOT.glob("plugins/*/pyproject.toml"):
        assert f'"{path.parent.name}": (' in text, path.parent.name
