"""`IsolatedBackend`: a model in a worker process, as a `Backend` that outlives its crashes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TypeVar

import msgspec

from themis_core.config import WorkerOptions
from themis_core.contracts import Transport
from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    DeadlineExceeded,
    RequestPoisonous,
    ThemisError,
)
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)
from themis_core.protocol import RemoteBackend
from themis_core.worker.process import WorkerExit
from themis_core.worker.resume import Journal
from themis_core.worker.spec import Spec
from themis_core.worker.supervisor import Supervisor, Worker, WorkerStatus
from themis_core.worker.suspects import Gate, Suspect
from themis_core.worker.tally import Tally

T = TypeVar("T")


class IsolatedBackend:
    """Runs `spec`'s model in a supervised worker over `transport`.

    When the worker dies, requests in flight are carried on by the next one, unless that is
    switched off or could not be exact; then they raise `BackendFailed`, which says how the worker
    ended. A request that kills its workers raises `RequestPoisonous`.
    """

    def __init__(
        self, spec: Spec, transport: Transport, options: WorkerOptions | None = None
    ) -> None:
        self._options = options or WorkerOptions()
        self._spec = spec
        self._transport = transport
        self._supervisor: Supervisor | None = None
        self._info: ModelInfo | None = None
        self._gate = Gate()
        self._adapters: dict[str, tuple[str, str]] = {}
        self._tally = Tally()
        self._resumed = self._poisonous = 0

    @property
    def info(self) -> ModelInfo:
        """Facts about the model. Raises `BackendClosed` unless started."""
        if self._info is None:
            raise self._closed()
        return self._info

    @property
    def worker(self) -> WorkerStatus:
        """The worker's state, its last exits, and what became of the requests."""
        if self._supervisor is None:
            return WorkerStatus(model=self._spec.model, state="stopped")
        return msgspec.structs.replace(
            self._supervisor.status(), resumed=self._resumed, poisonous=self._poisonous
        )

    async def start(self) -> None:
        """Start the worker and wait until its model is loaded."""
        supervisor = Supervisor(
            self._spec, self._transport, self._options, self._prepare, self._on_exit
        )
        self._supervisor = supervisor
        try:
            await supervisor.start()
            if self._supervisor is None:  # Closed while it was loading.
                raise self._closed()
        except BaseException:
            await supervisor.aclose()
            await self.aclose()
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request, from as many workers as it takes."""
        deadline = None if request.timeout is None else time.monotonic() + request.timeout
        journal, suspect = Journal(request, self.info), Suspect()
        while True:
            async with self._admitted(suspect, deadline, request):
                worker = await self._worker(deadline, request)
                worker.suspects[suspect] = request.request_id
                try:
                    async with aclosing(self._carry_on(worker, journal, deadline)) as events:
                        async for event in events:
                            journal.note(event)
                            suspect.progress = journal.count
                            if suspect.strikes and suspect.cleared:
                                self._gate.clear(suspect)
                            yield event
                    return
                except (BackendFailed, BackendClosed) as error:
                    if worker.alive:
                        raise  # What the model itself said.
                    found = await self._autopsy(worker, error)
                    self._judge(suspect, found, error)
                finally:
                    worker.suspects.pop(suspect, None)
            if journal.finished:
                yield journal.done()
                return
            self._resumed += 1

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector for each input."""
        return await self._call(lambda remote: remote.embed(request), request.request_id)

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages."""
        return await self._call(lambda remote: remote.tokenize(prompt))

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        return await self._call(lambda remote: remote.detokenize(token_ids))

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Load an adapter, on later workers as well."""
        await self._call(lambda remote: remote.load_adapter(name, path, description))
        self._adapters[name] = (path, description)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        await self._call(lambda remote: remote.unload_adapter(name))
        self._adapters.pop(name, None)

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """The loaded adapters."""
        return await self._call(lambda remote: remote.adapters())

    async def stats(self) -> BackendStats:
        """Counters over all workers; those of one that died are as they were last seen."""
        supervisor = self._running()
        worker = supervisor.current
        if worker is None or not worker.alive:
            return self._tally.total()
        try:
            self._tally.see(await worker.remote.stats())
        except (BackendFailed, BackendClosed):
            self._running()
        return self._tally.total()

    async def drain(self) -> None:
        """Have the worker finish what it does and take nothing more."""
        worker = self._running().current
        if worker is not None and worker.alive:
            await worker.remote.drain()

    async def aclose(self) -> None:
        """Stop the worker. Requests in flight raise `BackendClosed`."""
        supervisor, self._supervisor = self._supervisor, None
        self._info = None
        if supervisor is not None:
            # Shielded: a cancelled close must still not leave the process behind.
            await asyncio.shield(supervisor.aclose())

    # --- workers ---------------------------------------------------------------------------------

    async def _prepare(self, remote: RemoteBackend) -> None:
        """A new worker gets the adapters that the last one had."""
        for name, (path, description) in self._adapters.items():
            await remote.load_adapter(name, path, description)
        self._info = remote.info

    def _on_exit(self, worker: Worker, found: WorkerExit) -> None:
        self._tally.bury(len(worker.suspects))
        for suspect in worker.suspects:
            suspect.struck(alone=len(worker.suspects) == 1)

    @asynccontextmanager
    async def _admitted(
        self, suspect: Suspect, deadline: float | None, request: GenerateRequest
    ) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            entering = stack.enter_async_context(self._gate.enter(suspect))
            await _until(deadline, request, entering)
            yield

    async def _worker(self, deadline: float | None, request: GenerateRequest) -> Worker:
        return await _until(deadline, request, self._running().worker())

    async def _carry_on(
        self, worker: Worker, journal: Journal, deadline: float | None
    ) -> AsyncGenerator[GenerateEvent, None]:
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            raise _expired(journal.request)
        plan = journal.continuation(worker.remote.info, timeout)
        async with aclosing(worker.remote.generate(plan.request)) as events:
            if not journal.count:
                async for event in events:
                    yield event
                return
            async for event in events:
                for fresh in plan.pass_on(event):
                    yield fresh

    async def _autopsy(self, worker: Worker, error: ThemisError) -> WorkerExit:
        """How the worker ended. Raises `BackendClosed` if that was asked for."""
        if self._supervisor is None:
            raise self._closed() from error
        return await asyncio.shield(worker.buried)

    def _judge(self, suspect: Suspect, found: WorkerExit, error: ThemisError) -> None:
        """Raise, unless the request may be carried on."""
        if suspect.guilty:
            self._poisonous += 1
            raise RequestPoisonous(
                f"The request is refused: twice, running alone, its worker {found.reason}.",
                remedy="Report it, with the log of the worker.",
            ) from error
        if not self._options.resume:
            raise self._died(found) from error

    def _died(self, found: WorkerExit) -> BackendFailed:
        ids = ", ".join(found.requests[-4:]) or "none"
        return BackendFailed(
            f"The worker of model {self._spec.model!r} {found.reason}. In flight were: {ids}.",
            remedy="Repeat the request; the worker is being restarted.",
        )

    async def _call(self, call: Callable[[RemoteBackend], Awaitable[T]], request_id: str = "") -> T:
        """A call without side effects on the answer: repeated once if its worker dies."""
        suspect = Suspect()
        while True:
            async with self._gate.enter(suspect):
                worker = await self._running().worker()
                worker.suspects[suspect] = request_id or "a call"
                try:
                    return await call(worker.remote)
                except (BackendFailed, BackendClosed) as error:
                    if worker.alive:
                        raise
                    found = await self._autopsy(worker, error)
                    self._judge(suspect, found, error)
                finally:
                    worker.suspects.pop(suspect, None)

    def _running(self) -> Supervisor:
        if self._supervisor is None or self._info is None:
            raise self._closed()
        return self._supervisor

    def _closed(self) -> BackendClosed:
        return BackendClosed(f"The worker of model {self._spec.model!r} is not running.")


async def _until(deadline: float | None, request: GenerateRequest, work: Awaitable[T]) -> T:
    """Raises `DeadlineExceeded`."""
    remaining = None if deadline is None else deadline - time.monotonic()
    try:
        async with asyncio.timeout(remaining):
            return await work
    except TimeoutError:
        raise _expired(request) from None


def _expired(request: GenerateRequest) -> DeadlineExceeded:
    message = f"The request was not finished within {request.timeout} seconds."
    return DeadlineExceeded(message, field="timeout")
