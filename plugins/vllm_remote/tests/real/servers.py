"""Starting real vLLM servers on the bundled model, and ending all of each of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import themis_tiny_model

MODEL = str(themis_tiny_model.path("hf"))
ADAPTERS = [(name, str(themis_tiny_model.path(f"lora-{name}-peft"))) for name in ("german", "json")]
CONTEXT = 2048
GUIDANCE = '{"backend": "guidance"}'
# One thread for each process, no compilation, no calls home; what a test does not need is off.
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_PLUGINS": "",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
COMMON = [
    *("--dtype", "float32", "--enforce-eager", "--generation-config", "vllm"),
    *("--max-model-len", str(CONTEXT), "--max-num-seqs", "16"),
    *("--max-num-batched-tokens", "2048", "--kv-cache-memory-bytes", str(128 << 20)),
]
GENERATE = [
    *("--structured-outputs-config", GUIDANCE),
    *("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--max-cpu-loras", "8"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-scale-out"),
]
_PATIENCE = 150.0


class Server:
    """A `vllm serve` in a process group of its own, logging to a file."""

    def __init__(self, arguments: Sequence[str], log: Path, port: int = 0) -> None:
        self.port = port or free_port()
        self.log = log
        command = [str(Path(sys.executable).with_name("vllm")), "serve", MODEL]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port)]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, *COMMON, *arguments],
                env=os.environ | QUIET | {"VLLM_RPC_BASE_PATH": str(log.parent)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @classmethod
    def running(cls, port: int) -> Server:
        """One that was started by hand."""
        server = cls.__new__(cls)
        server.port = port
        server.process = subprocess.Popen(["sleep", "inf"], start_new_session=True)
        return server

    def wait_http(self) -> None:
        """Until it is healthy."""
        end = time.monotonic() + _PATIENCE
        while not self._healthy():
            self._check(end)
            time.sleep(0.1)

    def wait_port(self) -> None:
        """Until it listens."""
        end = time.monotonic() + _PATIENCE
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            self._check(end)
            time.sleep(0.1)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    def engine(self) -> int:
        """The process id of its engine."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for child in map(int, children.split()):
            if "EngineCore" in Path(f"/proc/{child}/comm").read_text() + _command(child):
                return child
        raise AssertionError(f"no engine among {children!r}")

    def end(self) -> None:
        """All of it, at once if it does not go by itself."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as it:
                return bool(it.status == 200)
        except OSError:
            return False

    def _check(self, end: float) -> None:
        if self.process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"vLLM did not start:\n{self.log.read_text()[-4000:]}")


@contextmanager
def serving(arguments: Sequence[str], log: Path, *, grpc: bool = False) -> Iterator[Server]:
    """A server that is ready."""
    server = Server(arguments, log)
    try:
        server.wait_port() if grpc else server.wait_http()
        yield server
    finally:
        server.end()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
