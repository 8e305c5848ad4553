"""`docs/first-backend.md`, followed to the letter: from built wheels, in an empty directory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT, clean_environment

pytestmark = pytest.mark.endurance  # About Themis itself, whatever the versions.

PAGE = ROOT / "docs" / "first-backend.md"
PORT = "8765"  # What the page says; the test takes a free one.
MEMBERS = ["themis_core", "themis_engine", "themis_testkit", "plugins/openai_server"]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)


class Reader:
    """Does what the page says, in an empty directory."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.environment = environment | {"THEMIS_SERVER__PORT": self.port}
        venv = folder / ".venv" / "bin"
        self.environment["PATH"] = os.pathsep.join(
            [str(venv), str(Path(sys.executable).parent), self.environment["PATH"]]
        )
        self.after_venv: list[Path] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def file(self, text: str) -> None:
        """The first line is a comment with the file's name."""
        name = text.partition("\n")[0].removeprefix("# ")
        assert re.fullmatch(r"[\w.]+", name), text
        (self.folder / name).write_text(text)

    def console(self, text: str) -> None:
        """Lines with a dollar are commands; what follows each is what it prints."""
        for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, expected = part.partition("\n")
            command, expected = (t.replace(PORT, self.port) for t in (command, expected))
            if command == "themis serve":
                self._stack.enter_context(self._serving(expected))
                continue
            result = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=150,
                check=False,
            )
            assert result.returncode == 0, f"{command}\n{result.stdout}"
            if expected:
                assert _alike(expected, result.stdout), f"{command}\n{result.stdout}"
            if "-m venv" in command:
                self._lend()

    def _lend(self) -> None:
        """What the page would fetch from PyPI comes from where the tests run."""
        for folder in self.after_venv:
            (site,) = (self.folder / ".venv" / "lib").glob("python*/site-packages")
            (site / "lent.pth").write_text(f"{folder}\n")

    @contextlib.contextmanager
    def _serving(self, expected: str) -> Iterator[None]:
        with subprocess.Popen(
            ["themis", "serve"],
            executable=str(self.folder / ".venv" / "bin" / "themis"),
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            try:
                line = process.stderr.readline()
                assert _alike(expected, line), line + process.stderr.read()
                yield
            finally:
                process.terminate()
                rest = process.stderr.read()
            assert process.wait(30) == 0, rest


def _alike(expected: str, got: str) -> bool:
    """Equal but for the width of gaps; `…` stands for anything."""
    pattern = re.escape(" ".join(expected.split())).replace("…", ".*")
    return re.fullmatch(pattern, " ".join(got.split()), re.S) is not None


def _third_party(folder: Path) -> Path:
    """A folder with all that is installed here, but for Themis."""
    folder.mkdir()
    for name in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(name).iterdir():
            if "themis" not in path.name and path.suffix != ".pth":
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """With `WHEELS` set to a folder of wheels, everything else really comes from PyPI."""
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("the page needs bash and curl")
    folder = tmp_path / "empty"
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    environment = clean_environment() | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    given = os.environ.get("WHEELS")
    if given is not None:
        for wheel in Path(given).glob("*.whl"):
            shutil.copy(wheel, wheels)
        with Reader(folder, environment) as reader:
            yield reader
        return
    pytest.importorskip("hatchling")
    for member in MEMBERS:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
            cwd=ROOT / member,
            check=True,
            capture_output=True,
        )
    # "0" is how pip spells --no-build-isolation in the environment.
    environment |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    with Reader(folder, environment) as reader:
        reader.after_venv.append(_third_party(tmp_path / "third_party"))
        yield reader


def blocks() -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in BLOCK.finditer(PAGE.read_text())]


def test_the_page_works(reader: Reader) -> None:
    for language, text in blocks():
        match language:
            case "console":
                reader.console(text)
            case "python" | "toml":
                reader.file(text)
            case _:
                raise AssertionError(f"a block of {language}, which nobody runs")


def test_the_runner_has_forty_lines() -> None:
    (text,) = (text for _, text in blocks() if text.startswith("# bigram.py\n"))
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
