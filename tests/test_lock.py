"""The lock: what was locked is loaded; six attacks on what is installed are refused by name."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from themis_core.config import load
from themis_core.errors import ConfigInvalid, PluginLocked, ThemisError
from themis_core.plugins import Guard, Registry, discover, read_lock, write_lock

from .conftest import themis
from .installing import write_distribution

PLUGIN = """
from themis_core.hooks import BackendPlugin, hookimpl

@hookimpl
def themis_backends():
    return [
        BackendPlugin(
            name="{name}",
            help="A test.",
            factory="{package}.parts:create",
            uses=lambda settings: {uses},
        )
    ]
"""
PARTS = "def create(settings):\n    return settings\n"


class Environment:
    """A folder of installed distributions, and one of start-up files."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.early = folder / "early"  # Before it on the path.
        self.lock = folder / "themis.lock"
        self.site.mkdir()
        self.early.mkdir()

    def install(
        self,
        name: str,
        version: str = "1.0",
        *,
        distribution: str = "",
        parts: str = PARTS,
        folder: Path | None = None,
        package: str = "",
        uses: str = "()",
    ) -> Path:
        """As an installer does it, RECORD and all. Returns the package's folder."""
        site = folder or self.site
        package = package or f"locked_{name}"
        write_distribution(
            site,
            distribution or f"lock-{name}",
            version,
            {
                f"{package}/__init__.py": "",
                f"{package}/plugin.py": PLUGIN.format(name=name, package=package, uses=uses),
                f"{package}/parts.py": parts,
            },
            requires=["themis-core>=0.1"],
            groups={"themis": {name: f"{package}.plugin"}},
        )
        return site / package

    def found(self) -> Iterable[metadata.Distribution]:
        return metadata.distributions(path=[str(self.early), str(self.site)])

    def write(self) -> None:
        write_lock(self.lock, [self.site], self.found())

    def guard(self) -> Guard:
        return read_lock(self.lock, [self.site])

    def registry(self) -> Registry:
        return Registry(discover(self.found()), self.guard())


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    made = Environment(tmp_path)
    monkeypatch.syspath_prepend(str(made.site))
    monkeypatch.syspath_prepend(str(made.early))
    made.install("good")
    made.install("victim")
    (made.site / "known.pth").write_text("# nothing\n")
    before = set(sys.modules)
    made.write()
    yield made
    for name in set(sys.modules) - before:
        if name.startswith("locked_"):
            del sys.modules[name]


def _changed_file(e: Environment) -> None:
    path = e.site / "locked_victim/parts.py"
    path.write_text(path.read_text() + "import os\n")


def _added_file(e: Environment) -> None:
    """A package of that name goes before the module."""
    (e.site / "locked_victim/parts").mkdir()
    (e.site / "locked_victim/parts/__init__.py").write_text("import os\n")


def _unlisted_plugin(e: Environment) -> None:
    e.install("stranger")


def _another_version(e: Environment) -> None:
    for name in ("METADATA", "RECORD", "entry_points.txt"):
        (e.site / "lock_victim-1.0.dist-info" / name).unlink()
    (e.site / "lock_victim-1.0.dist-info").rmdir()
    e.install("victim", "1.1", parts=PARTS + "import os\n")


def _startup_file(e: Environment) -> None:
    (e.site / "a.pth").write_text("import os\n")


def _shadowing_module(e: Environment) -> None:
    (e.early / "locked_victim").mkdir()
    (e.early / "locked_victim/__init__.py").write_text("import os\n")


def _shadowing_distribution(e: Environment) -> None:
    """Of the same name and version, earlier on the path, with a consistent RECORD."""
    e.install("victim", parts=PARTS + "import os\n", folder=e.early)


def _changed_startup_file(e: Environment) -> None:
    (e.site / "known.pth").write_text("import os\n")


def _added_beside(e: Environment) -> None:
    (e.site / "locked_victim/parts.cpython-311-x86_64-linux-gnu.so").write_bytes(b"")
    (e.site / "locked_victim/new.py").write_text("")


def _another_plugin_of_the_name(e: Environment) -> None:
    """Nobody is kept from what is locked by somebody who takes its name."""
    e.install("good", distribution="usurper", package="locked_usurper")


ATTACKS: dict[str, tuple[Callable[[Environment], None], str, str]] = {
    "a changed file": (_changed_file, "victim", "locked_victim/parts.py has changed"),
    "an added file": (_added_file, "victim", "locked_victim/parts/__init__.py"),
    "an unlisted plugin": (_unlisted_plugin, "stranger", "lock-stranger 1.0 is not in the lock"),
    "another version": (_another_version, "victim", "1.1 is locked at version 1.0"),
    "a new .pth file": (_startup_file, "victim", "a.pth is not in the lock"),
    "a module earlier on the path": (_shadowing_module, "victim", "early/locked_victim"),
    "a distribution earlier on the path": (_shadowing_distribution, "victim", "has changed"),
    "a changed .pth file": (_changed_startup_file, "victim", "known.pth has changed"),
    "files beside": (_added_beside, "victim", "locked_victim/new.py"),
}


def test_what_is_locked_is_loaded(environment: Environment) -> None:
    registry = environment.registry()
    registry.load_all()
    assert {s.name: s.state for s in registry.report()} == {"good": "loaded", "victim": "loaded"}
    assert environment.guard().differences(discover(environment.found())) == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_before_import_and_named(
    environment: Environment, attack: str, tell: Callable[[str], None]
) -> None:
    sabotage, name, cause = ATTACKS[attack]
    sabotage(environment)
    with pytest.raises(PluginLocked) as caught:
        environment.registry().load(name)
    tell(f"{caught.value.code}: {caught.value.message}")
    assert cause in caught.value.message
    assert caught.value.plugin == name
    assert "themis.lock" in str(caught.value)
    assert f"locked_{name}" not in sys.modules
    differences = environment.guard().differences(discover(environment.found()))
    assert any(cause in str(difference) for difference in differences)


@pytest.mark.parametrize("attack", [a for a in ATTACKS if ".pth" not in a])
def test_the_others_are_still_loaded(environment: Environment, attack: str) -> None:
    ATTACKS[attack][0](environment)
    registry = environment.registry()
    registry.load_all()
    states = {s.name: (s.state, s.code) for s in registry.report()}
    assert states["good"] == ("loaded", None)
    assert states[ATTACKS[attack][1]] == ("failed", "plugin_locked")


def test_a_stranger_cannot_take_the_name_of_what_is_locked(environment: Environment) -> None:
    _another_plugin_of_the_name(environment)
    registry = environment.registry()
    registry.load("good")
    states = {s.distribution: (s.state, s.code) for s in registry.report() if s.name == "good"}
    assert states == {"lock-good": ("loaded", None), "usurper": ("failed", "plugin_locked")}


def test_a_folder_that_is_gone_is_named(environment: Environment) -> None:
    parts = environment.install("folders")
    (parts / "inner").mkdir()
    (parts / "inner" / "part.py").write_text("")
    record = environment.site / "lock_folders-1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + "locked_folders/inner/part.py,,\n")
    environment.write()
    shutil.rmtree(parts / "inner")
    with pytest.raises(PluginLocked, match=r"inner/part\.py is missing"):
        environment.registry().load("folders")
    assert environment.guard().differences(discover(environment.found()))


def test_byte_code_of_another_source_is_refused(environment: Environment) -> None:
    source = environment.site / "locked_victim/parts.py"
    original, status = source.read_bytes(), source.stat()
    source.write_bytes(b"import os\n".ljust(len(original), b"#"))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    py_compile.compile(str(source), doraise=True)
    source.write_bytes(original)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(PluginLocked, match=r"__pycache__/parts.* that is not its source's"):
        environment.registry().load("victim")


def test_byte_code_of_its_own_source_is_none_of_our_business(environment: Environment) -> None:
    py_compile.compile(str(environment.site / "locked_victim/parts.py"), doraise=True)
    environment.registry().load("victim")


def test_what_differs_from_its_record_cannot_be_locked(environment: Environment) -> None:
    _changed_file(environment)
    with pytest.raises(PluginLocked, match=r"locked_victim/parts\.py"):
        environment.write()


def test_an_editable_installation_is_locked_with_its_source(environment: Environment) -> None:
    source = environment.site.parent / "source"
    source.mkdir()
    package = environment.site / "locked_good"
    package.rename(source / "locked_good")
    (environment.site / "__editable__.pth").write_text(f"{source}\n")
    info = environment.site / "lock_good-1.0.dist-info"
    (info / "direct_url.json").write_text(
        json.dumps({"url": source.as_uri(), "dir_info": {"editable": True}})
    )
    (info / "RECORD").write_text("__editable__.pth,,\n")
    sys.path.append(str(source))
    try:
        environment.write()
        environment.registry().load("good")
        (source / "locked_good/new.py").write_text("")
        with pytest.raises(PluginLocked, match=r"locked_good/new\.py is not in the lock"):
            environment.registry().load("good")
    finally:
        sys.path.remove(str(source))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"version": 2, "distributions": {}, "startup": {}}']
)
def test_a_broken_lock_lets_nothing_in(environment: Environment, content: bytes) -> None:
    environment.lock.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=r"themis\.lock"):
        environment.guard()


def test_the_lock_beside_the_configuration_is_obeyed_by_the_command_line(
    environment: Environment, tmp_path: Path
) -> None:
    path = f"{environment.early}{os.pathsep}{environment.site}"
    config = tmp_path / "configured" / "themis.toml"
    config.parent.mkdir()
    config.write_text('[models.v]\nbackend = "victim"\n')
    arguments = ["--config", str(config)]

    def run(*command: str) -> tuple[int, str]:
        result = themis(*command, *arguments, cwd=tmp_path, PYTHONPATH=path)
        return result.returncode, result.stdout + result.stderr

    environment.lock.unlink()  # It was of these two alone.
    code, said = run("lock")
    assert code == 0, said
    assert (config.parent / "themis.lock").is_file()
    assert run("lock", "--check")[0] == 0
    code, said = run("config", "check")
    assert code == 0, said
    _changed_file(environment)
    code, said = run("config", "check")
    assert code == 2
    assert "plugin_locked" in said
    assert "locked_victim/parts.py has changed" in said
    code, said = run("lock", "--check")
    assert code == 1
    assert "locked_victim/parts.py has changed" in said


def test_a_worker_is_told_which_lock_to_obey(environment: Environment) -> None:
    from themis_core.config import load
    from themis_core.worker import isolated_backend

    registry = Registry()
    path = environment.lock.parent / "themis.toml"
    path.write_text('[models.e]\nbackend = "echo"\nisolation = "worker"\n')
    environment.lock.unlink()
    write_lock(environment.lock)
    backend = isolated_backend(load(path, registry).models["e"], registry)
    assert backend._spec.lock == str(environment.lock)


def test_what_a_backend_uses_must_be_locked_too(environment: Environment, tmp_path: Path) -> None:
    environment.install("user", uses='["victim", "stranger"]')
    environment.write()
    environment.install("stranger")
    file = tmp_path / "themis.toml"
    file.write_text('[models.a]\nbackend = "user"\n')
    with pytest.raises(ConfigInvalid, match="stranger") as caught:
        load(file, environment.registry())
    assert [problem.key for problem in caught.value.problems] == ["models.a"]
    assert "plugin_locked" in caught.value.problems[0].message
    assert "locked_stranger" not in sys.modules


def test_the_error_is_one_of_the_configuration() -> None:
    assert issubclass(PluginLocked, ThemisError)
    assert PluginLocked.code == "plugin_locked"
