"""Includes, the environment, and lines in problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from themis_core.config import effective, load
from themis_core.config.schema import json_schema
from themis_core.errors import ConfigInvalid
from themis_core.plugins import Registry

from .config_plugin import BACKEND, problems

Writer = Callable[[str], Path]


def test_problems_have_lines(registry: Registry, write_config: Writer) -> None:
    path = write_config('# one\n\n[models.a]\nbackend = "mine"\n\ncontxt = 3\ncontext = 0\n')
    with pytest.raises(ConfigInvalid) as caught:
        load(path, registry, {})
    found = {p.key: (p.source, p.line, p.value) for p in caught.value.problems}
    assert found == {
        "models.a.contxt": (str(path), 6, None),
        "models.a.context": (str(path), 7, "0"),
    }
    assert f"{path}:7: models.a.context: Expected `int` >= 1" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            'several = [\n{host = "h"},\n{hst = 3}\n]',
            [
                "5: models.a.several[1].hst: unknown key. Did you mean 'host'?",
                "5: models.a.several[1].host: is missing.",
            ],
        ),
        (
            '[[models.a.several]]\nhost = "h"\n[[models.a.several]]\nhost = 3',
            ["6: models.a.several[1].host: Expected `str`, got `int` (the value is 3)."],
        ),
        (
            'kind = "smal"',
            [
                "3: models.a.kind: Expected 'large' or 'small' (the value is 'smal'). "
                "Did you mean 'small'? How big."
            ],
        ),
        ("kind = 3", ["3: models.a.kind: Expected 'large' or 'small' (the value is 3). How big."]),
        ("either = {prt = 3}", None),
        ('[models.a.peers]\nx = {host = "h", token = 3}', None),
    ],
)
def test_problems_inside_lists_tables_and_choices(
    registry: Registry, write_config: Writer, lines: str, expected: list[str] | None
) -> None:
    path = write_config(f'[models.a]\nbackend = "mine"\n{lines}\n')
    found = problems(path, registry)
    if expected is not None:
        assert found == [f"{path}:{line}" for line in expected]
    else:
        assert all(":4: models.a.peers.x.token" in p or ":3: models.a.either." in p for p in found)


def test_settings_that_nobody_can_read_are_their_plugins_fault(
    shelf: Any, registry: Registry, write_config: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.install(
        "odd", BACKEND.replace("int, msgspec.Meta(ge=1)", "int | None, msgspec.Meta(ge=1)")
    )
    path = write_config('[models.a]\nbackend = "odd"\ncontext = 3\n')
    assert "models.a.context: [plugin_failed]" in problems(path, shelf.registry())[0]
    json_schema(shelf.registry())
    assert "Plugin 'odd' is left out" in caplog.text


def test_what_is_missing_is_missing_in_its_table(registry: Registry, write_config: Writer) -> None:
    path = write_config('\n[models.a]\nbackend = "mine"\npeer = {}\n')
    assert problems(path, registry) == [f"{path}:4: models.a.peer.host: is missing."]


def test_includes(registry: Registry, write_config: Writer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "b.toml").write_text('[models.b]\nbackend = "mine"\n')
    (tmp_path / "models" / "a.toml").write_text(
        'include = ["../more.toml"]\n[models.a]\nbackend = "mine"'
    )
    (tmp_path / "more.toml").write_text("[models.a]\n\ncontext = 7\n")
    path = write_config('include = ["models/*.toml"]\ndefault = "b"\n')
    config = load(path, registry, {})
    assert list(config.models) == ["a", "b"]
    shown = {entry.key: entry for entry in effective(config)}
    assert shown["models.a.context"].value == 7
    assert shown["models.a.context"].origin.endswith("more.toml:3")
    assert shown["models.b.backend"].origin == f"{tmp_path / 'models' / 'b.toml'}:2"


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ('["no.toml"]', ":2: include: 'no.toml' is no file."),
        ('["none/*.toml"]', ":2: include: 'none/*.toml': there is no folder"),
        ('["themis.toml"]', "goes in a circle: "),
        ('["ring.toml"]', "ring.toml:1: include: 'themis.toml' goes in a circle"),
        ('["twice.toml"]', "twice.toml:3: models.a.context: is set here and at "),
        ('["broken.toml"]', "broken.toml: not valid TOML"),
        ('"a.toml"', "must be a list of file names"),
        ("[3]", "must be a list of file names"),
    ],
)
def test_includes_that_are_refused(
    registry: Registry, write_config: Writer, tmp_path: Path, include: str, expected: str
) -> None:
    (tmp_path / "ring.toml").write_text('include = ["themis.toml"]')
    (tmp_path / "twice.toml").write_text("[models.a]\n\ncontext = 5")
    (tmp_path / "broken.toml").write_text("= 3")
    path = write_config(
        f'default = "x"\ninclude = {include}\n[models.a]\nbackend = "mine"\ncontext = 0\n'
    )
    found = problems(path, registry)
    assert any(expected in problem for problem in found), found
    # Both places of a duplicate; and what else is wrong comes with it.
    assert "twice" not in include or f"{path}:5. Remove one" in found[0]
    assert any("context: Expected" in problem for problem in found)


def test_an_empty_folder_may_be_included(
    registry: Registry, write_config: Writer, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    path = write_config('include = ["models/*.toml"]\n[models.a]\nbackend = "mine"\n')
    assert list(load(path, registry, {}).models) == ["a"]


def test_the_environment_finds_names_that_it_cannot_spell(
    registry: Registry, write_config: Writer
) -> None:
    path = write_config('[models."Qwen-2.5"]\nbackend = "mine"\n')
    config = load(path, registry, {"THEMIS_MODELS__QWEN_2_5__CONTEXT": "9"})
    assert config.models["Qwen-2.5"].settings.context == 9  # type: ignore[attr-defined]
    config = load(path, registry, {"THEMIS_MODELS__QWEN_2_5__PATH": "2026"})
    assert config.models["Qwen-2.5"].settings.path == "2026"  # type: ignore[attr-defined]
    path = write_config('[models."a-b"]\nbackend = "mine"\n[models."a.b"]\nbackend = "mine"\n')
    assert "may mean 'a-b' or 'a.b'" in problems(path, registry, THEMIS_MODELS__A_B__CONTEXT="9")[0]
    assert "cannot be set" in problems(path, registry, THEMIS_INCLUDE="[]")[0]
