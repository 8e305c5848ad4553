"""The commands as a user meets them, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import clean_environment, serving, themis

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."

BROKEN = "raise RuntimeError('sabotage')\n"


@pytest.fixture
def broken_plugin(tmp_path: Path) -> Path:
    """A folder with an installed plugin that raises when it is imported."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sabotaged.py").write_text(BROKEN)
    info = folder / "sabotaged-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sabotaged\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(
        "[themis]\nsabotaged = sabotaged\n[themis.commands]\nbad = sabotaged:command\n"
    )
    return folder


def test_run_answers(tmp_path: Path) -> None:
    result = themis("run", FRANCE, cwd=tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == (f"{PARIS}\n", "", 0)


def test_run_as_json(tmp_path: Path) -> None:
    result = themis("run", "--json", FRANCE, cwd=tmp_path)
    answer = json.loads(result.stdout)
    assert answer["text"] == PARIS
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 0
    assert [choice["text"] for choice in answer["choices"]] == [PARIS]


def test_run_under_constraints(tmp_path: Path) -> None:
    assert themis("run", "--regex", "Rome|London", FRANCE, cwd=tmp_path).stdout == "Rome\n"
    schema = {"enum": [{"a": 7}]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    result = themis("run", "--json-schema", "schema.json", FRANCE, cwd=tmp_path)
    assert json.loads(result.stdout) == {"a": 7}
    refused = themis("run", "--regex", "(", FRANCE, cwd=tmp_path)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_several_answers_are_told_apart(tmp_path: Path) -> None:
    result = themis("run", "--answers", "2", FRANCE, cwd=tmp_path)
    assert result.stdout == f"[1] {PARIS}\n[2] {PARIS}\n"


def test_an_adapter_that_is_not_loaded_is_said(tmp_path: Path) -> None:
    result = themis("run", "--adapter", "poet=0.5", FRANCE, cwd=tmp_path)
    assert result.returncode == 1
    assert "poet" in result.stderr or "adapters" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_numpy_reference_answers_the_same(tmp_path: Path) -> None:
    pytest.importorskip("themis_testkit.reference")
    (tmp_path / "themis.toml").write_text('[models.tiny]\nsource = "tiny"\nbackend = "reference"\n')
    assert themis("run", FRANCE, cwd=tmp_path).stdout == f"{PARIS}\n"


def test_chat_remembers_and_obeys(tmp_path: Path) -> None:
    script = f"{FRANCE}\n/nonsense\n/clear\n{FRANCE}\n/quit\n"
    result = subprocess.run(
        [sys.executable, "-m", "themis_core.cli", "chat"],
        input=script,
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.count(PARIS) == 2
    assert "Unknown command" in result.stderr


def test_a_broken_plugin_is_listed_with_its_cause(tmp_path: Path, broken_plugin: Path) -> None:
    path = {"PYTHONPATH": str(broken_plugin)}
    report = {
        status["name"]: status
        for status in json.loads(themis("plugins", "--json", cwd=tmp_path, **path).stdout)
    }
    assert report["sabotaged"]["state"] == "failed"
    assert "sabotage" in report["sabotaged"]["reason"]
    assert {n for n, s in report.items() if s["state"] == "loaded"} >= {"echo", "openai", "tiny"}
    listed = themis("plugins", cwd=tmp_path, **path)
    assert listed.returncode == 0
    assert "RuntimeError('sabotage')" in listed.stdout
    assert themis("run", FRANCE, cwd=tmp_path, **path).stdout == f"{PARIS}\n"
    helped = themis("--help", cwd=tmp_path, **path)
    assert helped.returncode == 0
    assert "bad         From sabotaged 2.0." in helped.stdout
    used = themis("bad", cwd=tmp_path, **path)
    assert used.returncode == 2
    assert "[plugin_failed]: Plugin 'bad' of sabotaged 2.0" in used.stderr
    assert "RuntimeError('sabotage')" in used.stderr


def test_a_plugin_that_is_needed_and_broken_stops_the_start(
    tmp_path: Path, broken_plugin: Path
) -> None:
    (tmp_path / "themis.toml").write_text('[models.a]\nbackend = "sabotaged"\n')
    result = themis("run", "hi", cwd=tmp_path, PYTHONPATH=str(broken_plugin))
    assert result.returncode == 2
    assert "models.a.backend: [plugin_failed]" in result.stderr
    assert "RuntimeError('sabotage')" in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_are_readable_and_have_exit_codes(tmp_path: Path) -> None:
    unknown = themis("run", "-m", "tyni", "hi", cwd=tmp_path)
    assert unknown.returncode == 1
    assert "Did you mean 'tiny'" in unknown.stderr
    as_json = json.loads(themis("run", "--json", "-m", "tyni", "hi", cwd=tmp_path).stdout)
    assert as_json["error"]["code"] == "model_not_found"
    assert "Did you mean 'serve'" in themis("sreve", cwd=tmp_path).stderr
    missing = themis("config", "check", "-c", "no.toml", cwd=tmp_path)
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr


def test_config_check_and_show(tmp_path: Path) -> None:
    (tmp_path / "themis.toml").write_text(
        '[models.a]\nsource = "tiny"\nparalel = 3\n[server]\nport = "x"\n'
    )
    result = themis("config", "check", "--json", cwd=tmp_path)
    assert result.returncode == 2
    problems = json.loads(result.stdout)["problems"]
    assert [p["key"] for p in problems] == ["models.a.paralel", "server.port"]
    (tmp_path / "themis.toml").write_text('[models.a]\nsource = "tiny"\n')
    assert "no problems" in themis("config", "check", cwd=tmp_path).stdout
    shown = themis("config", "show", "--json", cwd=tmp_path, THEMIS_MODELS__A__PARALLEL="3")
    entries = {e["key"]: e for e in json.loads(shown.stdout)}
    assert entries["models.a.parallel"]["value"] == 3
    assert "THEMIS_MODELS__A__PARALLEL" in entries["models.a.parallel"]["origin"]


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        port = url.rpartition(":")[2]
        result = themis("serve", "--port", port, cwd=tmp_path)
    assert result.returncode != 0
    assert port in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_run(tmp_path: Path) -> None:
    """SIGINT while the model writes a long answer: the process ends by itself, at once."""
    arguments = ["run", "--raw", "-n", "900", "-t", "2", "--seed", "1", "Once"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "themis_core.cli", *arguments],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        os.kill(process.pid, signal.SIGINT)
        process.stdout.read()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) in (0, 130)  # 0 if the answer was complete by then.
