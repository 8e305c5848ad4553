"""Servers for end-to-end tests: the real command, as a child process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def themis(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder, with nothing of the caller's THEMIS_ variables."""
    return subprocess.run(
        [sys.executable, "-m", "themis_core.cli", *arguments],
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("THEMIS_")}


@contextlib.contextmanager
def serving(cwd: Path) -> Iterator[str]:
    """`themis serve` on a free port; gives its URL and stops it at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "themis_core.cli", "serve", "--port", "0"],
        cwd=cwd,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    break
            else:
                raise AssertionError("the server did not start:\n" + "".join(lines))
        finally:
            process.terminate()
            rest = process.stderr.read()
            code = process.wait(30)
        assert code == 0, rest
        assert "Traceback" not in rest, rest


# The local backends of the bundled model, and what each needs to be importable.
BACKENDS = {"llamacpp": "llama_cpp", "onnx": "onnxruntime", "reference": "themis_testkit.reference"}


@pytest.fixture(scope="session", params=list(BACKENDS))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server with the bundled model, on each local backend in turn."""
    backend = request.param
    pytest.importorskip(BACKENDS[backend])
    folder = tmp_path_factory.mktemp("server")
    threads = "" if backend == "reference" else "threads = 1\n"
    (folder / "themis.toml").write_text(
        f'[models.tiny]\nsource = "tiny"\nbackend = "{backend}"\n{threads}parallel = 16\n'
    )
    with serving(folder) as url:
        yield url
