"""One worker process, from its start to its exit, seen from the parent."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import Any

import msgspec

from themis_core.errors import BackendFailed, ModelLoadFailed
from themis_core.plugins.children import signal_name
from themis_core.protocol.failures import to_error
from themis_core.worker.spec import Report, Spec

_log = logging.getLogger("themis.worker")
_KEPT_LINES = 40
_READ = 1 << 16


class WorkerExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker ended. `signal` is its name, or None; `requests` were in flight (the last)."""

    pid: int
    code: int
    signal: str | None
    seconds: float
    log: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """A clause: what became of the process."""
        if self.signal is None:
            return f"ended by itself with exit code {self.code}"
        hint = ", perhaps for want of memory" if self.signal == "SIGKILL" else ""
        return f"was ended by {self.signal}{hint}"


class WorkerProcess:
    """Starts `python -m themis_core.worker`, reads its log, and knows when and how it ended.

    `start` raises what loading the model raised there. `ours` is our end of the socket pair that
    the worker serves on; it is to be closed when a connection has taken it over.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._partial = b""
        self._output = -1
        self._pidfd = -1
        self._began = time.monotonic()
        self.ours: socket.socket | None = None
        self.exited: asyncio.Future[WorkerExit] = self._loop.create_future()

    @property
    def pid(self) -> int:
        """The process id, 0 before the start."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Spawn, and wait until the model is loaded and served."""
        self._spawn()
        reading = asyncio.create_task(self._report())
        report: Report | None = None
        try:
            either: list[asyncio.Future[Any]] = [reading, self.exited]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                report = reading.result()
            else:
                # It may have said why before it ended; a child of its own may keep the line open.
                with suppress(TimeoutError):
                    report = await asyncio.wait_for(reading, 1.0)
        except BaseException:
            reading.cancel()
            await self.stop(0.0)
            raise
        if report is not None and report.failure is None:
            return
        await self.stop(1.0)
        if report is not None and report.failure is not None:
            raise to_error(report.failure)
        found = self.exited.result()
        last = f" Its last words: {found.log[-1]}" if found.log else ""
        raise ModelLoadFailed(
            f"The worker of model {self._spec.model!r} {found.reason} while it loaded.{last}",
            remedy='The log has more; `isolation = "none"` loads the model in this process.',
        )

    async def stop(self, patience: float) -> None:
        """Have it end; kill it after `patience` seconds. When this returns, it is gone."""
        if self._process is None:
            return
        self._close_control()
        if self.ours is not None:
            self.ours.close()
            self.ours = None
        try:
            if patience > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self.exited), patience)
        finally:  # A cancelled stop must not leave the process behind either.
            self.kill()
            await asyncio.shield(self.exited)

    def kill(self) -> None:
        """End it now. Twice is fine."""
        if self._process is not None and not self.exited.done():
            with suppress(ProcessLookupError):
                self._process.kill()

    def _spawn(self) -> None:
        """Raises `BackendFailed`, leaving nothing open and nobody running."""
        with ExitStack() as undo:
            try:
                self._begin(undo)
            except OSError as error:
                raise BackendFailed(f"A worker process cannot be started: {error}.") from error
            undo.pop_all()

    def _begin(self, undo: ExitStack) -> None:
        """Spawn, watch, and send what is to be done. `undo` gets what takes it back."""
        with ExitStack() as theirs_to_close:
            ours, theirs = socket.socketpair()
            control, their_control = socket.socketpair()
            for sock in (ours, control):
                undo.callback(sock.close)
            for sock in (theirs, their_control):
                theirs_to_close.callback(sock.close)
            output, their_output = os.pipe()
            undo.callback(os.close, output)
            theirs_to_close.callback(os.close, their_output)
            spec = msgspec.structs.replace(
                self._spec, url=f"{self._spec.transport}://?fd={theirs.fileno()}"
            )
            # From this thread: the kernel ties the worker's life to the thread that started it.
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "themis_core.worker",
                    str(their_control.fileno()),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=their_output,
                stderr=their_output,
                pass_fds=[theirs.fileno(), their_control.fileno()],
            )
            undo.callback(process.wait)
            undo.callback(process.kill)
            control.sendall(msgspec.json.encode(spec) + b"\n")
        pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
        control.setblocking(False)
        os.set_blocking(output, False)
        self.ours, self._control, self._output = ours, control, output
        self._process, self._pidfd = process, pidfd
        self._loop.add_reader(output, self._read_log)
        self._watch(process)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._ended, process)
        else:
            waiting = self._loop.run_in_executor(None, process.wait)
            waiting.add_done_callback(lambda _: self._ended(process))

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._read_log()
        self._close_log()
        self.exited.set_result(
            WorkerExit(
                pid=process.pid,
                code=code,
                signal=signal_name(-code) if code < 0 else None,
                seconds=time.monotonic() - self._began,
                log=tuple(self._lines),
            )
        )

    async def _report(self) -> Report | None:
        """The worker's one line, or None if it ended without."""
        data = b""
        control = self._control
        assert control is not None
        while not data.endswith(b"\n"):
            try:
                part = await self._loop.sock_recv(control, _READ)
            except OSError:
                return None
            if not part:
                return None
            data += part
        return msgspec.json.decode(data, type=Report)

    def _read_log(self) -> None:
        while self._output >= 0:
            try:
                data = os.read(self._output, _READ)
            except BlockingIOError:
                return
            if not data:
                self._close_log()
                return
            *lines, self._partial = (self._partial + data).split(b"\n")
            for line in lines:
                self._keep(line)
            self._partial = self._partial[-_READ:]

    def _keep(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self._lines.append(text)
        _log.info("%s[%d]: %s", self._spec.model, self.pid, text)

    def _close_log(self) -> None:
        if self._output >= 0:
            if self._partial:  # Its last words need not be a whole line.
                self._keep(self._partial)
                self._partial = b""
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1

    def _close_control(self) -> None:
        if self._control is not None:
            # What still reads it must not meet another file under the same number.
            self._loop.remove_reader(self._control.fileno())
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
            self._control = None
