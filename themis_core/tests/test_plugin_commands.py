"""Commands of plugins: listed without being imported, refused by name, and in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from themis_core.cli import plugin_commands
from themis_core.cli.main import _OWN, themis
from themis_core.errors import PluginConflict, PluginFailed, PluginIncompatible, PluginLocked
from themis_core.plugins import write_lock

GOOD = "import click\n@click.command()\ndef command():\n    click.echo('hello')\n"

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with a command; returns the name of its module."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("THEMIS_CONFIG", raising=False)

    def add(name: str, source: str = GOOD, owner: str = "", requires: str = ">=0.1") -> str:
        owner = owner or f"owner-{name}"
        module = f"command_{owner}_{name}_{tmp_path.name}".replace("-", "_")
        info = site / f"{owner.replace('-', '_')}-3.0.dist-info"
        info.mkdir()
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {owner}\nVersion: 3.0\n"
            f"Requires-Dist: themis-core{requires}\n"
        )
        (info / "entry_points.txt").write_text(f"[themis.commands]\n{name} = {module}:command\n")
        (info / "RECORD").write_text(f"{module}.py,,\n{info.name}/entry_points.txt,,\n")
        return module

    return add


def test_a_command_is_listed_unimported_and_runs(install: Install) -> None:
    module = install("greet")
    assert plugin_commands.described()["greet"] == "From owner-greet 3.0."
    assert module not in sys.modules
    command = plugin_commands.load("greet")
    assert isinstance(command, click.Command)
    assert module in sys.modules
    assert plugin_commands.load("nothing") is None


def test_two_of_one_name_are_a_conflict(install: Install) -> None:
    install("greet", owner="one")
    install("greet", owner="two")
    assert {plugin_commands.described()["greet"]} <= {
        "From one 3.0 and two 3.0.",
        "From two 3.0 and one 3.0.",
    }
    with pytest.raises(PluginConflict, match=r"one 3\.0 and two 3\.0"):
        plugin_commands.load("greet")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import sys; sys.exit(4)", r"SystemExit\(4\)"),
        ("command = 3", "has no click command"),
        ("", "has no click command"),
    ],
)
def test_a_broken_one_is_refused_by_name(install: Install, source: str, cause: str) -> None:
    install("greet", source)
    with pytest.raises(PluginFailed, match=rf"owner-greet 3\.0.*{cause}"):
        plugin_commands.load("greet")


def test_one_for_another_core_is_refused_unimported(install: Install) -> None:
    module = install("greet", requires=">=99")
    with pytest.raises(PluginIncompatible, match=r"themis-core >=99"):
        plugin_commands.load("greet")
    assert module not in sys.modules


def test_the_lock_holds_for_commands_too(install: Install, tmp_path: Path) -> None:
    install("known")
    write_lock(tmp_path / "themis.lock")
    assert plugin_commands.load("known") is not None
    module = install("stranger")
    with pytest.raises(PluginLocked, match="is not in the lock"):
        plugin_commands.load("stranger")
    assert module not in sys.modules


def test_broken_metadata_is_in_nobodys_way(install: Install, tmp_path: Path) -> None:
    install("greet")
    for name, text in (
        ("nameless", "[themis]\na = b\n"),
        ("garbled", "[themis]\nno equals sign\n"),
    ):
        (tmp_path / f"site/{name}-1.dist-info").mkdir()
        (tmp_path / f"site/{name}-1.dist-info/entry_points.txt").write_text(text)
    assert "greet" in plugin_commands.described()
    assert plugin_commands.load("greet") is not None
    lock = write_lock(tmp_path / "themis.lock")
    assert "owner-greet" in lock.distributions
    assert not {"nameless", "garbled"} & lock.distributions.keys()


@pytest.mark.parametrize(
    "name", [name for name, (target, _) in _OWN.items() if find_spec(target.partition(":")[0])]
)
def test_help_says_of_a_command_what_the_command_says_of_itself(name: str) -> None:
    command = themis.get_command(click.Context(themis), name)
    assert command is not None
    assert command.get_short_help_str(200) == _OWN[name][1]


@pytest.mark.parametrize(
    "arguments", [["-c", "import themis_core"], ["-m", "themis_core.cli", "--help"]]
)
def test_starting_imports_neither_plugins_nor_what_is_heavy(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "themis_core" in imported
    assert not imported & {"numpy", "asyncio", "msgspec", "pluggy", "packaging", "ssl"}
    assert {name for name in imported if name.startswith("themis_")} == {"themis_core"}
