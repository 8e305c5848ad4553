"""Running foreign code in a child process, with a time limit, and saying how it ended.

The child reports in JSON lines to a file of its own, so that nothing that a plugin prints can
disturb them, and what it reported before it died is there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

import msgspec

_BOOTSTRAP = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from importlib import import_module
module, _, function = sys.argv[2].partition(":")
getattr(import_module(module), function)(json.loads(sys.argv[3]), int(sys.argv[4]))
"""
_KEPT = 2000  # Characters of what a child wrote to its standard error.


class ChildResult(msgspec.Struct, frozen=True, kw_only=True):
    """`reports` in their order. `ending` says how it ended before it was done; None if it was."""

    reports: list[dict[str, Any]]
    ending: str | None
    stderr: str


def run_child(target: str, request: dict[str, Any], limit: float) -> ChildResult:
    """Call `module:function(request, fd)` in a child with this process's path; see `reporter`.

    The child and all that it started are killed after `limit` seconds.
    """
    with tempfile.TemporaryFile() as reports, tempfile.TemporaryFile() as errors:
        arguments = [json.dumps(sys.path), target, json.dumps(request), str(reports.fileno())]
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOTSTRAP, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[reports.fileno()],
            start_new_session=True,
            # If this process is killed, the child still ends.
            env={**os.environ, "_THEMIS_CHILD_SECONDS": str(int(limit) + 5)},
        )
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(child)
        reports.seek(0)
        errors.seek(0)
        lines = _parsed(reports.read())
        text = errors.read().decode(errors="replace").strip()[-_KEPT:]
    done = bool(lines) and lines[-1] == {"done": True}
    return ChildResult(
        reports=lines[:-1] if done else lines,
        ending=None if done else _ending(code, limit),
        stderr=text,
    )


class Reporter:
    """The child's side: writes reports, and says at last that it is done."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._fd = fd
        signal.alarm(int(os.environ.pop("_THEMIS_CHILD_SECONDS", "60")))

    def report(self, **fields: Any) -> None:
        """Write one report, at once."""
        os.write(self._fd, json.dumps(fields).encode() + b"\n")

    def done(self) -> None:
        """Everything has been said; ends the process, whatever threads plugins have started."""
        self.report(done=True)
        os._exit(0)


def _parsed(content: bytes) -> list[dict[str, Any]]:
    """What can be read of it: a plugin that writes to every descriptor writes here too."""
    lines = []
    for line in content.splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # It has ended, and has left nobody behind.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ending(code: int | None, limit: float) -> str:
    if code is None:
        return f"did not come to an end within {limit:g} seconds"
    if code < 0:
        return f"crashed with {signal_name(-code)}"
    return f"ended the process with exit code {code}"


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 40` for those that have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
