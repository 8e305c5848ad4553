"""Plugins that tests install on the spot: a module and its metadata in a temporary folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from themis_core.plugins import Registry, discover

from .config_plugin import BACKEND

WELL_BEHAVED = """
from themis_core.hooks import BackendPlugin, hookimpl

@hookimpl
def themis_backends():
    return [BackendPlugin(name="{name}", help="A test.", factory="{module}:create")]

def create(settings):
    return ("backend", settings)
"""


class Shelf:
    """A folder of installed plugins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        name: str,
        source: str = WELL_BEHAVED,
        *,
        distribution: str | None = None,
        requires: str = "themis-core>=0.1",
    ) -> str:
        """Install a plugin; returns its module's name."""
        distribution = distribution or f"dist-{name}"
        module = f"shelf_{distribution}_{name}".replace("-", "_")
        text = source.replace("{name}", name).replace("{module}", module)
        (self.folder / f"{module}.py").write_text(text)
        info = self.folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n"
            f"Requires-Dist: {requires}\n"
        )
        with (info / "entry_points.txt").open("a") as file:
            if file.tell() == 0:
                file.write("[themis]\n")
            file.write(f"{name} = {module}\n")
        return module

    def registry(self) -> Registry:
        """A registry of the plugins on this shelf alone."""
        return Registry(discover(metadata.distributions(path=[str(self.folder)])))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield Shelf(folder)
    for name in set(sys.modules) - before:
        if name.startswith("shelf_"):
            del sys.modules[name]


@pytest.fixture
def registry(shelf: Shelf) -> Registry:
    """With the backend `mine`, whose settings have every shape."""
    shelf.install("mine", BACKEND)
    return shelf.registry()


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "themis.toml"
        path.write_text(text)
        return path

    return write
