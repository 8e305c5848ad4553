"""Eleven broken distributions, really installed: each is named with its cause, and nothing falls.

They lie in `tests/sabotage`; two of them make one sabotage together, the duplicate name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, clean_environment, themis
from .installing import install_project

LIMIT = "40"  # Seconds for a child; the one that loops takes all of them.
MODULE = "themis_sabotage_"

# name → (state, code, what the report says of the cause, how a start with it ends)
TABLE: dict[str, tuple[str, str | None, str, int]] = {
    "import_raises": ("error", "plugin_failed", "the licence server cannot be reached", 2),
    "exits": ("error", "plugin_failed", "cannot be imported: SystemExit(3)", 2),
    "loops": ("error", "plugin_failed", f"did not come to an end within {LIMIT} seconds", 130),
    "segfaults": ("error", "plugin_failed", "crashed with SIGSEGV while it was imported", -11),
    "wrong_api": ("error", "plugin_incompatible", "is made for themis-core >=99", 2),
    "twin": ("error", "plugin_conflict", "both provide a plugin called 'twin'", 2),
    "wrong_arguments": ("error", "plugin_failed", "Argument(s) {'nonsense'}", 2),
    "settings_raise": ("error", "plugin_failed", "RuntimeError('no settings today')", 2),
    "factory_raises": ("error", "plugin_failed", "RuntimeError('no backend for", 2),
    "imports_torch": ("warning", None, "with torch", 0),
}


@pytest.fixture(scope="session")
def sabotage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them installed, to be put on the path."""
    target = tmp_path_factory.mktemp("sabotage")
    projects = sorted(path.parent for path in ROOT.glob("tests/sabotage/*/pyproject.toml"))
    assert len(projects) == 11
    for project in projects:
        install_project(project, target)
    return target


@pytest.fixture(scope="session")
def report(sabotage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "themis.toml").write_text('[models.e]\nbackend = "echo"\n[server]\nport = 0\n')
    arguments = ["doctor", "--json", "--limit", LIMIT]
    result = themis(*arguments, cwd=folder, PYTHONPATH=str(sabotage))
    assert result.returncode == 1, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return {section["title"]: section["findings"] for section in document["sections"]}


def test_the_doctor_names_each_with_its_cause(
    report: dict[str, Any], tell: Callable[[str], None]
) -> None:
    rows = [f"{'plugin':16} {'level':8} {'code':20} report"]
    for name, (level, code, cause, _) in TABLE.items():
        found = next(f for f in report["plugins"] if f["subject"] == name and f["level"] == level)
        told = f"{found['message']} {found['remedy']}"
        rows.append(f"{name:16} {level:8} {code or '-':20} {told}")
        assert found["data"]["code"] == code
        assert cause in found["message"]
        assert f"themis-sabotage-{name.replace('_', '-')} 6.6" in found["message"]
        assert found["remedy"]
        assert "last words" not in found["message"]
    tell("\n".join(["the table of sabotage", *rows]))


def test_every_other_plugin_and_the_configuration_live_on(report: dict[str, Any]) -> None:
    others = [f for f in report["plugins"] if f["subject"] not in TABLE]
    assert {f["subject"] for f in others} >= {"echo", "openai", "shm", "unix", "tiny"}
    # On a busy machine, a good one may be called slow.
    assert [f["message"] for f in others if f["level"] == "error"] == []
    assert [f["level"] for f in report["configuration"]] == ["ok"]


def test_the_list_of_plugins_survives_them(sabotage: Path, tmp_path: Path) -> None:
    listed = themis("plugins", "--no-load", cwd=tmp_path, PYTHONPATH=str(sabotage))
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in TABLE)


def test_help_and_good_models_live_on(sabotage: Path, tmp_path: Path) -> None:
    help_ = themis("--help", cwd=tmp_path, PYTHONPATH=str(sabotage))
    assert help_.returncode == 0
    assert "doctor" in help_.stdout
    (tmp_path / "themis.toml").write_text('[models.e]\nbackend = "echo"\n')
    run = themis("run", "still here", cwd=tmp_path, PYTHONPATH=str(sabotage))
    assert run.returncode == 0, run.stderr
    assert "still here" in run.stdout


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row[3] == 2])
def test_a_configured_one_stops_the_start_with_its_report(
    sabotage: Path, tmp_path: Path, name: str
) -> None:
    _, code, cause, exit_code = TABLE[name]
    (tmp_path / "themis.toml").write_text(f'[models.m]\nbackend = "{name}"\n')
    result = themis("run", "hello", cwd=tmp_path, PYTHONPATH=str(sabotage))
    assert result.returncode == exit_code, result.stderr
    assert cause in result.stderr
    assert str(code) in result.stderr
    assert f"themis-sabotage-{name.replace('_', '-')} 6.6" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_factory_that_raises_stops_a_server_before_it_listens(
    sabotage: Path, tmp_path: Path
) -> None:
    (tmp_path / "themis.toml").write_text('[models.m]\nbackend = "factory_raises"\n')
    result = themis("serve", "--port", "0", cwd=tmp_path, PYTHONPATH=str(sabotage))
    assert result.returncode == 2, result.stderr
    assert "RuntimeError('no backend for" in result.stderr
    assert "http://" not in result.stderr


def test_one_that_crashes_this_process_is_named_in_its_last_words(
    sabotage: Path, tmp_path: Path
) -> None:
    (tmp_path / "themis.toml").write_text('[models.m]\nbackend = "segfaults"\n')
    result = themis("run", "hello", cwd=tmp_path, PYTHONPATH=str(sabotage))
    assert result.returncode == -signal.SIGSEGV
    assert f"{MODULE}segfaults.py" in result.stderr
    assert (
        "<plugin segfaults (themis-sabotage-segfaults 6.6): see `themis doctor`>" in result.stderr
    )


def test_one_that_never_ends_is_named_and_can_be_stopped(sabotage: Path, tmp_path: Path) -> None:
    (tmp_path / "themis.toml").write_text('[models.m]\nbackend = "loops"\n')
    with subprocess.Popen(
        [sys.executable, "-m", "themis_core.cli", "run", "hello"],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(sabotage)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "loops (themis-sabotage-loops 6.6) is still being imported" in line
            assert "themis doctor" in line
            while process.poll() is None:  # asyncio takes the first one for itself.
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
            assert process.returncode == TABLE["loops"][3]
        finally:
            process.kill()


def test_the_child_of_a_killed_doctor_ends_too(sabotage: Path, tmp_path: Path) -> None:
    """The watchdog in the child: whoever is killed cannot kill anybody."""
    (tmp_path / "fd").touch()
    with (tmp_path / "fd").open("w") as file:
        code = (
            "import os; os.environ['_THEMIS_CHILD_SECONDS'] = '1'\n"
            "from themis_core.plugins import Reporter\n"
            f"Reporter({file.fileno()})\nimport {MODULE}loops"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=dict(os.environ) | {"PYTHONPATH": str(sabotage)},
            pass_fds=[file.fileno()],
            timeout=60,
            check=False,
        )
    assert result.returncode == -signal.SIGALRM
