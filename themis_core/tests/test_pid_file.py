"""The pid file: one server holds it, a dead one's is known as such, and nothing stays behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from themis_core.cli.main import run_command
from themis_core.cli.pid_file import Outcome, PidFile, read_pid_file
from themis_core.errors import ConfigInvalid


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with PidFile(path) as file:
        content = read_pid_file(path)
        assert content is not None
        assert (content.pid, content.ready, content.reloads) == (os.getpid(), False, 0)
        file.ready()
        file.reloaded(Outcome(ok=False, code="config_invalid", message="a long text " * 100))
        file.reloaded(Outcome(ok=True, message="short"))
        content = read_pid_file(path)
        assert content is not None
        assert (content.ready, content.reloads) == (True, 2)
        assert content.last == Outcome(ok=True, message="short")
    assert not path.exists()


def test_only_one_server_has_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with PidFile(path):
        with pytest.raises(ConfigInvalid, match="belongs to a server that is running"):
            PidFile(path)
        assert read_pid_file(path) is not None  # The one that failed has left it alone.
    with PidFile(path):
        pass


def test_a_file_that_was_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text('{"pid": 1, "ready": true}\n')  # Whose process may be anything by now.
    with pytest.raises(ConfigInvalid, match="No server holds"):
        read_pid_file(path)
    assert run_command(["reload", "--pid-file", str(path)]) == 2
    with PidFile(path):  # The next server takes it over.
        content = read_pid_file(path)
        assert content is not None
        assert content.pid == os.getpid()


def test_no_file_and_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_pid_file(path)
    with pytest.raises(ConfigInvalid, match="cannot be written"):
        PidFile(tmp_path / "no" / "folder")
    with path.open("w") as half:
        fcntl.flock(half, fcntl.LOCK_EX)
        half.write('{"pid": 1')
        half.flush()
        assert read_pid_file(path) is None  # It is being written: look again.


def test_a_server_that_is_not_ready_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pid"
    with PidFile(path):
        assert run_command(["reload", "--pid-file", str(path), "--timeout", "0"]) == 2
    assert "has not answered in time" in capsys.readouterr().err
