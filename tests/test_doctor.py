"""`themis doctor`: what it finds in good and in bad surroundings, and in a running server."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from themis_core.doctor.configured import Configured, Model
from themis_core.doctor.serving import port
from themis_core.doctor.surroundings import memory, permissions
from themis_core.hooks import Finding
from themis_core.plugins import Probe, run_child

from .conftest import serving, themis


def examined(folder: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    result = themis("doctor", "--json", *arguments, cwd=folder, **environment)
    document = json.loads(result.stdout)
    assert result.returncode == (1 if document["worst"] == "error" else 0), result.stderr
    assert "Traceback" not in result.stderr
    return result.returncode, {s["title"]: s["findings"] for s in document["sections"]}


def test_everything_about_a_good_configuration(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    (tmp_path / "themis.toml").write_text(
        '[models.a]\nsource = "tiny"\nbackend = "llamacpp"\nisolation = "worker"\n'
        '[models.b]\nbackend = "echo"\n[server]\nport = 0\n'
    )
    code, found = examined(tmp_path)
    assert code == 0
    assert list(found) == [
        "versions",
        "lock",
        "plugins",
        "native libraries",
        "configuration",
        "models",
        "model files",
        "memory",
        "port",
        "permissions",
    ]
    models = {f["subject"]: f for f in found["models"]}
    assert models["a: path"]["data"]["architecture"] == "llama"
    assert models["a: worker"]["data"]["crash_limit"] == 5
    assert models["b: memory"]["level"] == "note"
    (file,) = found["model files"]
    assert len(file["data"]["sha256"]) == 64
    (together,) = found["memory"]
    assert together["data"]["needed"] == models["a: memory"]["data"]["bytes"]
    assert together["data"]["unknown"] == 1
    assert [f["level"] for f in found["permissions"]] == ["ok"]


def test_what_is_wrong_is_said_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "themis.toml").write_text('[models.a]\nbackend = "echo"\nprefx = "x"\n')
    (tmp_path / "themis.toml").chmod(0o666)
    text = themis("doctor", "--no-hashes", cwd=tmp_path)
    assert text.returncode == 1
    assert "X  configuration  themis.toml:3: models.a.prefx: unknown key." in text.stdout
    assert "Did you mean 'prefix'?" in text.stdout
    assert "Everybody may change the configuration" in text.stdout
    assert "-> chmod o-w themis.toml" in text.stdout
    assert text.stdout.endswith("error(s).\n")


def test_a_model_file_that_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "themis.toml").write_text('[models.a]\nbackend = "llamacpp"\npath = "no.gguf"\n')
    code, found = examined(tmp_path)
    assert code == 1
    assert found["model files"][0]["level"] == "error"
    assert "models.a.path" in found["model files"][0]["message"]


def test_a_lock_that_does_not_fit_is_found(tmp_path: Path) -> None:
    (tmp_path / "themis.toml").write_text('[models.a]\nbackend = "echo"\n')
    assert themis("lock", cwd=tmp_path).returncode == 0
    lock = json.loads((tmp_path / "themis.lock").read_text())
    del lock["distributions"]["themis-echo"]
    (tmp_path / "themis.lock").write_text(json.dumps(lock))
    code, found = examined(tmp_path)
    assert code == 1
    echo = next(f for f in found["lock"] if f["subject"] == "themis-echo")
    assert "is not in the lock" in echo["message"]
    assert "echo" in {f["subject"] for f in found["plugins"] if f["level"] == "error"}


def test_a_served_themis_tells_how_its_worker_ended(tmp_path: Path) -> None:
    pytest.importorskip("themis_shm_transport")
    (tmp_path / "themis.toml").write_text(
        '[models.e]\nbackend = "echo"\nisolation = "worker"\npreload = true\n'
    )
    with serving(tmp_path) as url:
        number = int(url.rstrip("/").rpartition(":")[2])
        served, worker = port("127.0.0.1", number)
        assert served.level == "ok"
        assert "e (ready)" in served.message
        assert (worker.level, worker.data["state"]) == ("ok", "ready")
        os.kill(_worker_of(number), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while worker.level == "ok" or worker.data["state"] != "ready":
            assert time.monotonic() < deadline
            _, worker = port("127.0.0.1", number)
    assert worker.level == "warning"
    assert "SIGKILL" in worker.message
    assert "themis.worker" in (worker.remedy or "")


def _worker_of(number: int) -> int:
    """The worker is a child of the server, which is a child of this process."""
    with urllib.request.urlopen(f"http://127.0.0.1:{number}/health") as answer:
        assert json.load(answer)["models"][0]["worker"]["state"] == "ready"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            server = _parent(int(entry.name))
            ours = _parent(server) == os.getpid()
        except OSError:
            continue  # It has ended meanwhile.
        if ours and b"themis_core.worker" in command:
            return int(entry.name)
    raise AssertionError("no worker was found")


def _parent(pid: int) -> int:
    # "pid (name) state parent …"
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_port_that_somebody_else_has_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number = sock.getsockname()[1]
        sock.close()
        assert [f.level for f in port("127.0.0.1", number)] == ["ok"]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        (found,) = port("127.0.0.1", sock.getsockname()[1])
    assert found.level == "warning"
    assert "could not listen" in found.message


def test_memory_is_summed_over_the_models() -> None:
    plans = [{"bytes": 1 << 60}, {"bytes": 1 << 60}, {}]
    models = [
        Model(
            name=str(i),
            backend="x",
            paths={},
            findings=[Finding(level="ok", subject="memory", message="", data=plan)],
        )
        for i, plan in enumerate(plans)
    ]
    (found,) = memory(Configured(source=None, ready=True, problems=[], models=models))
    assert found.level == "warning"
    assert found.data["needed"] == 2 << 60
    assert found.data["unknown"] == 1


def test_what_everybody_may_change_is_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "themis.lock"
    lock.touch(0o600)
    nothing = Configured(source=None, ready=True, problems=[])
    assert [f.level for f in permissions(nothing, lock)] == ["ok"]
    lock.chmod(0o622)
    (found,) = permissions(nothing, lock)
    assert found.level == "error"
    assert found.remedy == f"chmod o-w {lock}"


@pytest.mark.parametrize("code", [0, 7])
def test_noise_in_the_reports_does_no_harm(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy.py").write_text(
        "import os\n\ndef child(request, fd):\n"
        "    os.write(fd, b'not json\\n[1]\\n{')\n"
        "    os._exit(request['code'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = run_child("noisy:child", {"code": code}, 30)
    assert result.reports == []
    assert result.ending == f"ended the process with exit code {code}"


def test_slow_means_heavy_or_long() -> None:
    fields: dict[str, Any] = {"name": "a", "distribution": "a", "version": "1", "module": "a"}
    quick = Probe(**fields, state="loaded", seconds=0.1)
    assert not quick.slow
    assert Probe(**fields, state="loaded", seconds=1.5).slow
    assert Probe(**fields, state="loaded", seconds=0.1, heavy=("torch",)).slow
