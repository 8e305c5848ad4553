"""Run a program that the kernel kills when its parent ends: `lifeline.py PARENT PROGRAM ARGS…`.

Linux's PR_SET_PDEATHSIG outlives exec, so it is set here, and the program takes this one's place.
vLLM's engine is started through it: an engine whose worker was killed would go on for ever, holding
the GPU. Only the standard library is used, and little of it.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Does not return."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # It ended before the line above.
            os._exit(1)
    os.execv(command[0], command)


def write_launcher(folder: Path) -> Path:
    """A program that is used like this Python, for `multiprocessing.set_executable`."""
    launcher = folder / "python"
    python, here = _quoted(sys.executable), _quoted(str(Path(__file__).resolve()))
    launcher.write_text(f'#!/bin/sh\nexec {python} -S -E -s {here} {os.getpid()} {python} "$@"\n')
    launcher.chmod(stat.S_IRWXU)
    return launcher


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
