"""`themis serve` reads its configuration again: streams go on, bad files change nothing."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from .conftest import clean_environment, themis

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")

# A backend that says what it is set to, waits for a file where the test says so, and keeps a diary.
PLUGIN = """
import asyncio
from pathlib import Path
from typing import Annotated, Literal
import msgspec
from themis_core.errors import BackendClosed, ModelLoadFailed
from themis_core.hooks import BackendPlugin, hookimpl
from themis_core.messages import Delta, Done, Finished, ModelInfo, Started, Usage

class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    says: str
    folder: str = "."
    loads: Literal["at once", "never", "wrongly"] = "at once"
    key: Annotated[str, msgspec.Meta(extra={"secret": True})] = ""

class Backend:
    info = ModelInfo(backend="gated")

    def __init__(self, settings):
        self.settings, self.open = settings, False

    def note(self, what):
        with open(Path(self.settings.folder) / "diary", "a") as diary:
            print(what, self.settings.says, file=diary, flush=True)

    async def start(self):
        self.note("starts")
        if self.settings.loads == "wrongly":
            raise ModelLoadFailed(f"told to, with {self.settings!r}")
        if self.settings.loads == "never":
            await asyncio.Event().wait()
        self.open = True

    async def generate(self, request):
        yield Started(prompt_tokens=1)
        yield Delta(text=self.settings.says)
        while request.prompt == "wait" and not (Path(self.settings.folder) / "gate").exists():
            if not self.open:
                raise BackendClosed("closed under a request")
            await asyncio.sleep(0.01)
        if request.prompt == "key":
            yield Delta(text=f":{len(self.settings.key)}:{self.settings.key[:1]}")
        yield Delta(text="!")
        yield Finished(reason="stop")
        yield Done(usage=Usage(prompt_tokens=1, completion_tokens=2))

    async def stats(self):
        from themis_core.messages import BackendStats
        return BackendStats()

    async def aclose(self):
        self.open = False
        self.note("closed")

@hookimpl
def themis_backends():
    return [BackendPlugin(name="gated", help="", settings=Settings, factory="gated:Backend")]
"""


class Served:
    """A server in a folder, with its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        site = folder / "site"
        info = site / "gated-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "gated.py").write_text(PLUGIN)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: gated\nVersion: 1.0\nRequires-Dist: themis-core>=0.1\n"
        )
        (info / "entry_points.txt").write_text("[themis]\ngated = gated\n")
        self.environment = clean_environment() | {"PYTHONPATH": str(site)}
        self.log: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "themis_core.cli", "-vv", "serve"),
                *("--port", "0", "--pid-file", "pid"),
            ],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        line = self.wait_for("Themis serves")
        url = line[line.index("http://") :].split()[0]
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, text: str) -> str:
        while True:
            line = self._lines.get(timeout=60)
            assert line, f"{text!r} never came:\n{''.join(self.log)}"
            if text in line:
                return line

    def write(self, text: str) -> None:
        (self.folder / "themis.toml").write_text(text)

    def reload(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return themis("reload", "--pid-file", "pid", *arguments, cwd=self.folder)

    def ask(self, model: str, prompt: str = "x") -> str:
        completion = self.client.completions.create(model=model, prompt=prompt)
        return completion.choices[0].text

    def diary(self) -> list[str]:
        path = self.folder / "diary"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_entry(self, entry: str) -> None:
        until = time.monotonic() + 60
        while entry not in self.diary():
            assert time.monotonic() < until, (entry, self.diary())
            assert self.process.poll() is None
            time.sleep(0.01)

    def stop(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        self.process.terminate()
        code = self.process.wait(60)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        assert code == 0, "".join(self.log)
        # Whatever was begun has been closed.
        begun = [entry.split()[1] for entry in self.diary() if entry.startswith("starts")]
        closed = [entry.split()[1] for entry in self.diary() if entry.startswith("closed")]
        assert set(begun) <= set(closed)
        assert not (self.folder / "pid").exists()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    served.write(model("a", "old"))
    served.start()
    try:
        yield served
    finally:
        served.stop()


def model(name: str, says: str, *more: str) -> str:
    return "\n".join([f'[models.{name}]\nbackend = "gated"\nsays = "{says}"', *more, ""])


def test_a_stream_in_flight_finishes_on_the_old_model(served: Served) -> None:
    served.write(model("a", "old") + model("same", "kept"))
    assert served.reload().returncode == 0
    assert served.ask("same") == "kept!"
    stream = served.client.completions.create(model="a", prompt="wait", stream=True)
    chunks = iter(stream)
    assert next(chunks).choices[0].text == "old"
    served.write(model("a", "new") + model("same", "kept") + model("b", "more", "preload = true"))
    done = served.reload("--json")
    assert json.loads(done.stdout)["ok"] is True
    assert done.returncode == 0
    assert "added: models.b; changed: models.a" in json.loads(done.stdout)["message"]
    assert served.ask("a") == "new!"
    assert [served.ask("b"), served.ask("same")] == ["more!", "kept!"]
    assert "closed old" not in served.diary()  # Its stream is still waiting.
    (served.folder / "gate").touch()
    rest = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert rest == "!"
    served.wait_for_entry("closed old")
    assert served.diary().count("starts kept") == 1
    assert "closed kept" not in served.diary()


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("= 3", "not valid TOML"),
        (model("a", "new", "sayz = 3"), "themis.toml:4: models.a.sayz: unknown key. Did you mean"),
        (model("a", "new", 'key = "env:THEMIS_NO_SUCH"'), "themis.toml:4: models.a.key: the env"),
        (model("a", "new") + model("b", "bad", "preload = true", 'loads = "wrongly"'), "told to"),
    ],
)
def test_a_bad_file_leaves_the_old_one_in_force(served: Served, bad: str, expected: str) -> None:
    assert served.ask("a") == "old!"
    served.write(bad)
    refused = served.reload()
    assert refused.returncode == 2
    assert "the old configuration stays in force" in refused.stderr
    assert expected in refused.stderr
    assert served.ask("a") == "old!"
    os.kill(served.process.pid, signal.SIGHUP)  # The same without the command.
    served.wait_for("The new configuration is refused")
    assert served.ask("a") == "old!"
    assert "closed old" not in served.diary()
    served.write(model("a", "good"))
    assert served.reload().returncode == 0
    assert served.ask("a") == "good!"


def test_a_server_that_is_stopped_while_it_reloads_leaves_nothing(served: Served) -> None:
    served.write(model("a", "new") + model("b", "slow", "preload = true", 'loads = "never"'))
    with subprocess.Popen(
        [sys.executable, "-m", "themis_core.cli", "reload", "--pid-file", "pid"],
        cwd=served.folder,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as reloading:
        served.wait_for_entry("starts slow")
        assert served.ask("a") == "old!"  # Still, and meanwhile.
        served.process.terminate()
        assert served.process.wait(60) == 0
        assert reloading.wait(60) == 2
        assert reloading.stderr is not None
        assert "pid" in reloading.stderr.read()
    assert "closed slow" in served.diary()


def test_hang_ups_in_a_row_end_with_the_last_file(served: Served) -> None:
    for number in range(20):
        served.write(model("a", f"n{number}"))
        os.kill(served.process.pid, signal.SIGHUP)
    assert served.reload().returncode == 0
    assert served.ask("a") == "n19!"


def test_secrets_are_not_to_be_seen_anywhere(served: Served) -> None:
    file = served.folder / "key"
    file.write_text("Sesame-1\n")
    reference = f'key = "file:{file}"'
    served.write(model("a", "open", reference, 'isolation = "worker"'))
    assert served.reload().returncode == 0
    assert served.ask("a", "key") == "open:8:S!"
    workers = [
        folder.parent
        for folder in Path("/proc").glob("[0-9]*/stat")
        if _parent(folder) == served.process.pid
    ]
    assert workers
    for worker in workers:
        for name in ("cmdline", "environ"):
            assert b"Sesame" not in (worker / name).read_bytes()
    file.write_text("Tahini-22\n")
    assert "changed: models.a" in served.reload().stdout
    assert served.ask("a", "key") == "open:9:T!"
    bad = 'loads = "wrongly"'
    served.write(model("a", "bad", reference, 'isolation = "worker"', "preload = true", bad))
    refused = served.reload("--json")
    assert "told to" in refused.stdout
    told = [refused.stdout, *served.log]
    for arguments in (["config", "show"], ["config", "show", "--json"], ["config", "check"]):
        environment = {"PYTHONPATH": served.environment["PYTHONPATH"]}
        result = themis(*arguments, cwd=served.folder, **environment)
        assert result.returncode == 0, result.stderr
        told += [result.stdout, result.stderr]
    for text in told:
        assert "Sesame" not in text
        assert "Tahini" not in text
    for path in served.folder.rglob("*"):
        if path.is_file() and path != file:
            assert b"Tahini" not in path.read_bytes(), path


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # It has ended.


def test_the_servers_keys_may_be_references(tmp_path: Path) -> None:
    served = Served(tmp_path)
    (tmp_path / "key").write_text("Sesame-1\n")
    served.write(f'[server]\napi_keys = ["file:{tmp_path / "key"}"]\n' + model("a", "old"))
    served.start()
    try:
        with pytest.raises(openai.AuthenticationError):
            served.ask("a")
        served.client.api_key = "Sesame-1"
        assert served.ask("a") == "old!"
    finally:
        served.stop()
    assert "Sesame" not in "".join(served.log)
    (tmp_path / "key").unlink()
    refused = themis("serve", cwd=tmp_path, PYTHONPATH=served.environment["PYTHONPATH"])
    assert refused.returncode == 2
    assert "themis.toml:2: server.api_keys: the file" in refused.stderr
