"""vLLM's engine process: started so that it ends with this one, and ended when it is to."""

from __future__ import annotations

import multiprocessing
import multiprocessing.spawn
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from themis_core.errors import BackendClosed
from themis_vllm_remote.engine.lifeline import write_launcher

_PATIENCE = 5.0  # Seconds for children to end by themselves.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Surroundings:
    """A folder for the engine's sockets, and the way its processes are started."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="themis-vllm-"))
        self._before = set(multiprocessing.active_children())

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Around what starts the engine: its processes end with this one, whatever ends it.

        Raises `BackendClosed` if this process is told to stop: loading takes minutes, and the event
        loop does not run meanwhile.
        """
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        os.environ["VLLM_RPC_BASE_PATH"] = str(self._folder)
        before = multiprocessing.spawn.get_executable()
        multiprocessing.set_executable(str(write_launcher(self._folder)))
        try:
            with _stoppable():
                yield
        finally:
            multiprocessing.set_executable(before or sys.executable)

    def end(self) -> None:
        """No process and no file of the engine is left."""
        mine = [child for child in multiprocessing.active_children() if child not in self._before]
        for child in mine:
            child.join(_PATIENCE)
            if child.is_alive():
                child.kill()
                child.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """The same at once, for an engine that never came to be."""
        for child in multiprocessing.active_children():
            if child not in self._before:
                child.kill()
        self.end()


@contextmanager
def _stoppable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise BackendClosed("The worker was stopped while it loaded.", plugin="vllm_engine")

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
