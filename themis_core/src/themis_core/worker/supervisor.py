"""Keeps one worker alive: starts it, hears of its end, starts the next, and knows when to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

import msgspec

from themis_core.config import WorkerOptions
from themis_core.contracts import Transport
from themis_core.errors import BackendClosed, BackendFailed, ThemisError
from themis_core.protocol import RemoteBackend
from themis_core.worker.process import WorkerExit, WorkerProcess
from themis_core.worker.spec import Spec
from themis_core.worker.suspects import Suspect

_log = logging.getLogger("themis.worker")
_KEPT_EXITS = 8

State = Literal["stopped", "starting", "ready", "waiting", "crash loop"]


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A supervised worker at this moment. `exits` are the last ones that nobody had asked for.

    `resumed` counts requests that were continued on another worker, `poisonous` those refused.
    """

    model: str
    state: State
    pid: int = 0
    restarts: int = 0
    resumed: int = 0
    poisonous: int = 0
    exits: tuple[WorkerExit, ...] = ()


class Worker:
    """A process and the connection to it."""

    def __init__(self, process: WorkerProcess, remote: RemoteBackend) -> None:
        self.process = process
        self.remote = remote
        self.suspects: dict[Suspect, str] = {}  # What is in flight, in order, with its id.
        # How it ended, once that has been noted everywhere.
        self.buried: asyncio.Future[WorkerExit] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        """True while requests can be sent to it."""
        return self.remote.connected and not self.process.exited.done()

    async def exit(self) -> WorkerExit:
        """How it ended. A worker that cannot be talked to any more is made to end."""
        try:
            # The end of the connection is often heard before that of the process.
            return await asyncio.wait_for(asyncio.shield(self.process.exited), 1.0)
        except TimeoutError:
            self.process.kill()
        return await asyncio.shield(self.process.exited)

    async def stop(self, patience: float) -> None:
        """Disconnect and end the process."""
        try:
            await self.remote.aclose()
        finally:
            await self.process.stop(patience)


Prepare = Callable[[RemoteBackend], Awaitable[None]]
OnExit = Callable[[Worker, WorkerExit], None]


class Supervisor:
    """`prepare` is awaited for each worker before it is used; `on_exit` is called for each that
    ended unasked, with the requests that were in flight, before anybody hears of it.
    """

    def __init__(
        self,
        spec: Spec,
        transport: Transport,
        options: WorkerOptions,
        prepare: Prepare,
        on_exit: OnExit,
    ) -> None:
        self._spec = spec
        self._transport = transport
        self._options = options
        self._prepare = prepare
        self._on_exit = on_exit
        self._worker: Worker | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._crashes: deque[float] = deque(maxlen=options.crash_limit)
        self._quick = 0  # Crashes in a row of workers that lived only briefly.
        self._exits: deque[WorkerExit] = deque(maxlen=_KEPT_EXITS)
        self._restarts = 0
        self._broken: ThemisError | None = None
        self._state: State = "stopped"

    def status(self) -> WorkerStatus:
        """State, process and exits."""
        return WorkerStatus(
            model=self._spec.model,
            state=self._state,
            pid=self._worker.process.pid if self._worker is not None else 0,
            restarts=self._restarts,
            exits=tuple(self._exits),
        )

    @property
    def current(self) -> Worker | None:
        """The worker of this moment, if there is one."""
        return self._worker

    async def start(self) -> None:
        """Start the first worker. Raises what loading the model raises."""
        self._state = "starting"
        try:
            self._worker = await self._launch()
        except BaseException:
            self._state = "stopped"
            raise
        self._state = "ready"
        self._keeper = asyncio.create_task(self._keep(), name=f"themis worker {self._spec.model}")

    async def worker(self) -> Worker:
        """The worker that takes requests, waiting for a restart if need be.

        Raises `BackendFailed` while it crashes in a loop, and `BackendClosed` after `aclose`.
        """
        while True:
            if self._keeper is None:
                raise self._closed()
            if self._worker is not None and self._worker.alive:
                return self._worker
            if self._broken is not None:
                raise self._copy(self._broken)
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        """Stop the worker. When this returns, no process is left."""
        keeper, self._keeper = self._keeper, None
        self._state = "stopped"
        self._changed.set()
        if keeper is not None:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([keeper])
        worker, self._worker = self._worker, None
        if worker is not None:
            if not worker.buried.done():
                worker.buried.set_exception(self._closed())
                worker.buried.exception()  # Perhaps nobody waits for it.
            await worker.stop(self._options.stop_timeout)

    async def _launch(self) -> Worker:
        process = WorkerProcess(self._spec)
        await process.start()
        sock = process.ours
        assert sock is not None
        remote = self._transport.connect(f"{self._spec.transport}://?fd={sock.fileno()}")
        if not isinstance(remote, RemoteBackend):
            raise TypeError(f"transport {self._spec.transport!r} cannot be supervised")
        worker = Worker(process, remote)
        try:
            await remote.start()
            sock.close()
            process.ours = None
            await self._prepare(remote)
        except BaseException:
            await worker.stop(0.0)
            raise
        return worker

    async def _keep(self) -> None:
        """Until cancelled: wait for the worker's end, and start the next."""
        while True:
            worker = self._worker
            if worker is not None:
                await _end(worker)
                await self._bury(worker)
            await self._pause()
            try:
                self._state = "starting"
                self._worker = await self._launch()
            # Whatever it is: nobody but this task starts workers, and all requests wait for it.
            except Exception as error:  # noqa: BLE001
                self._not_restarted(error)
                continue
            self._restarts += 1
            self._state = "ready"
            self._broken = None
            self._changed.set()

    def _not_restarted(self, error: Exception) -> None:
        if isinstance(error, ThemisError):
            told, defect = error, None
        else:
            told, defect = BackendFailed(f"The worker could not be restarted: {error!r}."), error
        _log.error(
            "The worker of %r could not be restarted: %s", self._spec.model, told, exc_info=defect
        )
        self._note_crash(0.0)
        self._broken = told
        self._changed.set()  # Those who wait have waited for this.

    async def _bury(self, worker: Worker) -> None:
        self._state = "waiting"
        requests = tuple(worker.suspects.values())
        found = msgspec.structs.replace(await worker.exit(), requests=requests[-16:])
        self._worker = None
        self._exits.append(found)
        _log.error(
            "The worker of %r (pid %d) %s, with %d requests in flight.",
            self._spec.model,
            found.pid,
            found.reason,
            len(requests),
        )
        self._note_crash(found.seconds)
        self._on_exit(worker, found)
        worker.buried.set_result(found)
        error = BackendFailed(f"The worker {found.reason}.")
        worker.remote.give_up(error)
        await worker.stop(0.0)

    def _note_crash(self, lived: float) -> None:
        self._crashes.append(time.monotonic())
        self._quick = self._quick + 1 if lived < self._options.crash_window else 1

    async def _pause(self) -> None:
        """Back off; after too many crashes, tell everybody and wait until they are long ago."""
        options = self._options
        crashes = self._crashes
        if len(crashes) == options.crash_limit:
            wait = crashes[0] + options.crash_window - time.monotonic()
            if wait > 0:
                self._state = "crash loop"
                self._broken = self._crash_loop(wait)
                self._changed.set()
                await asyncio.sleep(wait)
                self._broken = None
                return
        if self._quick > 1:
            delay = options.backoff * 2 ** min(self._quick - 2, 30)
            await asyncio.sleep(min(delay, options.backoff_max))

    def _crash_loop(self, wait: float) -> BackendFailed:
        last = f" The last one {self._exits[-1].reason}." if self._exits else ""
        return BackendFailed(
            f"The worker of model {self._spec.model!r} has crashed {self._options.crash_limit} "
            f"times within {self._options.crash_window:g} seconds.{last}",
            remedy=f"It is started again in {wait:.0f} seconds; see the log for the cause.",
        )

    def _closed(self) -> BackendClosed:
        return BackendClosed(f"The worker of model {self._spec.model!r} is not running.")

    def _copy(self, error: ThemisError) -> ThemisError:
        own = BackendFailed(error.message, remedy=error.remedy)
        own.__cause__ = error
        return own


async def _end(worker: Worker) -> None:
    """Return when the process has ended, or cannot be talked to any more."""
    lost = asyncio.create_task(worker.remote.wait_lost())
    try:
        either: list[asyncio.Future[Any]] = [worker.process.exited, lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        lost.cancel()
