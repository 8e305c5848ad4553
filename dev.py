#!/usr/bin/env python3
"""Set up Themis from a checkout and use it. Needs Python 3.11 or newer and a C++ compiler.

    python3 dev.py run "What is the capital of France?"     any `themis` command
    python3 dev.py test                                     lint, types, and all tests

Both make `.venv` first, or bring it up to date.

    python3 dev.py --wheels-only run "…"                    without a C++ compiler

makes `.venv-wheels` instead, where nothing is compiled and ONNX Runtime does the work.

Only the standard library is used here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints" / "dev.txt"
MEMBERS = [
    "themis_core",
    "themis_engine[hf]",
    "themis_testkit",
    "plugins/tiny_model",
    "plugins/echo",
    "plugins/grpc_transport",
    "plugins/llamacpp",
    "plugins/onnx[cpu]",
    "plugins/openai_server[fast]",
    "plugins/shm_transport",
    "plugins/vllm_remote[grpc]",
]
# The files of tests are shared out among as many processes as there are cores, but not too many:
# each loads models.
PARALLEL = ["-q", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
LLAMA_CPP = "plugins/llamacpp"
COMPILE_NOTE = """\
llama.cpp is compiled for this machine now. That happens once and takes about six minutes on two
cores; pip keeps the result, so that the next set-up here takes seconds."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment. With `development`, what compiling and testing need is in it too."""

    folder: Path
    members: list[str]
    development: bool

    def program(self, name: str) -> str:
        """The path of an installed command."""
        return str(self.folder / ("Scripts" if os.name == "nt" else "bin") / name)


FULL = Environment(ROOT / ".venv", MEMBERS, development=True)
WHEELS = Environment(
    ROOT / ".venv-wheels",
    [member for member in MEMBERS if member not in {LLAMA_CPP, "themis_testkit"}],
    development=False,
)


def main(arguments: list[str]) -> int:
    """Set up, then do what was asked. Returns the exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is what tells people.
        return fail(f"Themis needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stdout.write(__doc__ or "")
        return 0
    environment = FULL
    if arguments[0] == "--wheels-only":
        environment, arguments = WHEELS, arguments[1:]
    code = set_up(environment)
    if code:
        return code
    if arguments[:1] == ["test"] and environment is FULL:
        return test(arguments[1:])
    return subprocess.call([environment.program("themis"), *arguments])


def set_up(environment: Environment) -> int:
    """Make an environment match this checkout. Does nothing if it does."""
    folder, python = environment.folder, environment.program("python")
    wanted, stamp = fingerprint(environment), folder / "themis-setup"
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    say(f"Setting up {folder.relative_to(ROOT)} …")
    if not folder.exists():
        venv.create(folder, with_pip=True)
    constraints = str(CONSTRAINTS)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-c", constraints]
    uv = [environment.program("uv"), "pip", "install", "-q", "--python", python, "-c", constraints]
    wanted_packages = [p for member in environment.members for p in ("-e", str(ROOT / member))]
    if environment.development:
        wanted_packages += ["--group", f"{ROOT / 'pyproject.toml'}:dev"]
    failed = run([*pip, "-q", "uv"])
    if not failed and environment.development:
        failed = compile_llama_cpp(python, [*pip, "-v"])
    if failed or run([*uv, *wanted_packages]):
        return fail("The set-up failed; the lines above say why.")
    stamp.write_text(wanted)
    return 0


def compile_llama_cpp(python: str, pip: list[str]) -> int:
    """Install llama-cpp-python, with a progress bar while it compiles."""
    probe = "import importlib.util as u; exit(not u.find_spec('llama_cpp'))"
    if run([python, "-c", probe]) == 0:
        return 0
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return fail(
            "No C++ compiler was found, and llama.cpp must be compiled. On Debian or Ubuntu:\n"
            "  sudo apt-get install build-essential\nOn macOS:\n  xcode-select --install\n"
            "Or go without: python3 dev.py --wheels-only …"
        )
    start, explained = time.monotonic(), False
    tail: list[str] = []
    with subprocess.Popen(
        [*pip, "llama-cpp-python"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            tail = [*tail[-60:], line]
            step = re.match(r"\s*\[(\d+)/(\d+)\]", line)
            if step and not explained:
                say(COMPILE_NOTE)
                explained = True
            if step:
                bar(int(step[1]), int(step[2]), time.monotonic() - start)
    if explained and sys.stdout.isatty():
        sys.stdout.write("\n")
    if process.returncode:
        sys.stdout.write("".join(tail))
    return process.returncode


def bar(done: int, total: int, seconds: float) -> None:
    """Draw progress: over the same line on a terminal, at each tenth in a log."""
    filled = 30 * done // total
    text = f"[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} files, {seconds:.0f} s"
    if sys.stdout.isatty():
        sys.stdout.write(f"\r{text}")
        sys.stdout.flush()
    elif done == total or done % max(1, total // 10) == 0:
        say(text)


def test(arguments: list[str]) -> int:
    """Lint, types, tests. With arguments, only pytest, with them."""
    python = FULL.program("python")
    pytest = [python, "-m", "pytest", "--nothing-absent", *(arguments or PARALLEL)]
    if arguments:
        return subprocess.call(pytest, cwd=ROOT)
    checks = [
        [FULL.program("ruff"), "check", "."],
        [FULL.program("ruff"), "format", "--check", "."],
        [python, "-m", "mypy"],
        pytest,
    ]
    for command in checks:
        say("$ " + " ".join([Path(command[0]).name, *command[1:]]))
        code = subprocess.call(command, cwd=ROOT)
        if code:
            return code
    return 0


def fingerprint(environment: Environment) -> str:
    """Changes when anything that decides what is installed changes."""
    files = [CONSTRAINTS, ROOT / "pyproject.toml", Path(__file__)]
    files += [ROOT / member.partition("[")[0] / "pyproject.toml" for member in environment.members]
    digest = hashlib.sha256(sys.version.encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(command: list[str]) -> int:
    """Run a set-up step."""
    return subprocess.call(command, cwd=ROOT)


def say(text: str) -> None:
    """A line for people, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fail(text: str) -> int:
    """An error for people; returns the exit code."""
    sys.stderr.write(f"{text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
