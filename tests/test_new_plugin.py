"""`themis new-plugin`: each kind works as it stands, and is loaded, linted and typed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from themis_core.cli.scaffold import KINDS, check_name, package
from themis_core.errors import InvalidRequest
from themis_core.hooks import FAMILIES

from .conftest import ROOT, clean_environment, themis

pytestmark = pytest.mark.endurance  # About Themis itself, whatever the versions.


def made(kind: str, tmp_path: Path) -> tuple[Path, str]:
    """The folder of a new package of this kind, and its name."""
    name = "myscheme" if kind == "transport" else f"my_{kind.replace('-', '_')}"
    result = themis("new-plugin", kind, name, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Wrote {name}" in result.stdout
    return tmp_path / name, name


def install(folder: Path) -> dict[str, str]:
    """Have it found as if it were installed, without a network: its metadata beside its source."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        + "".join(f"Requires-Dist: {one}\n" for one in project["dependencies"])
    )
    points = project["entry-points"]["themis"]
    (info / "entry_points.txt").write_text(
        "[themis]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
    )
    return {"PYTHONPATH": str(folder / "src")}


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def test_there_is_a_kind_for_every_family() -> None:
    assert {kind.family for kind in KINDS.values()} == set(FAMILIES)
    for kind in KINDS.values():
        assert FAMILIES[kind.family].__name__ == kind.descriptor


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_its_tests_as_it_stands(kind: str, tmp_path: Path) -> None:
    folder, name = made(kind, tmp_path)
    path = install(folder)
    tested = run("pytest", "-q", "-p", "no:cacheprovider", cwd=folder, **path)
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout
    load = f"from themis_core.plugins import Registry; print(*Registry().descriptors({name!r}))"
    loaded = subprocess.run(
        [sys.executable, "-c", load],
        cwd=folder,
        env=clean_environment() | path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert loaded.stdout.split() == [KINDS[kind].family], loaded.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_clean_and_its_example_is_a_configuration(kind: str, tmp_path: Path) -> None:
    folder, _ = made(kind, tmp_path)
    readme = (folder / "README.md").read_text()
    example = readme.partition("```toml\n")[2].partition("```")[0]
    path = install(folder)
    if 'source = "tiny"' not in example and kind != "cache":
        if "[models" not in example:
            example += '[models.e]\nbackend = "echo"\n'
        (folder / "themis.toml").write_text(example)
        checked = themis("config", "check", cwd=folder, **path)
        assert checked.returncode == 0, checked.stderr
    if importlib.util.find_spec("ruff") is not None:
        config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
        module = f'lint.isort.known-first-party=["{next((folder / "src").glob("themis_*")).name}"]'
        # How long a line is depends on the name.
        linted = run("ruff", "check", "--ignore=E501", "--config", module, *config, ".", cwd=folder)
        assert linted.returncode == 0, linted.stdout + linted.stderr


def test_they_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    folders = [made(kind, tmp_path)[0] for kind in KINDS]
    cache = str(tmp_path / "mypy")
    paths = [str(folder / part) for folder in folders for part in ("src", "tests")]
    sources = os.pathsep.join(str(folder / "src") for folder in folders)
    typed = run("mypy", "--strict", "--cache-dir", cache, *paths, cwd=tmp_path, MYPYPATH=sources)
    assert typed.returncode == 0, typed.stdout


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("backend", "My-Backend", "such as 'my_backend'"),
        ("backend", "1st", "such as 'st'"),
        ("backend", "a__b", "such as 'a_b'"),
        ("backend", "../evil", "such as 'evil'"),
        ("backend", "ünïcode", "beginning with a letter"),
        ("backend", "", "beginning with a letter."),
        ("backend", "class", "word of Python's grammar"),
        ("backend", "a" * 41, "longer than 40"),
        ("transport", "my_tcp", "Write it without underscores: 'mytcp'"),
        ("cache", "echo", "is already a plugin of themis-echo"),
        ("cache", "core", "would be the module themis_core"),
        ("cashe", "x", "Did you mean 'cache'?"),
    ],
)
def test_names_that_are_refused(kind: str, name: str, expected: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        package(kind, name)
    assert expected in str(caught.value)


def test_every_kind_takes_an_ordinary_name() -> None:
    for kind in KINDS:
        check_name(kind, "mine2")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    folder, name = made("cache", tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = themis("new-plugin", "quota", name, cwd=tmp_path)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
