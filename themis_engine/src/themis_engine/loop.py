"""The token loop: one thread that owns the runner and computes step after step."""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from themis_core.errors import BackendClosed, BackendFailed, ModelLoadFailed, ThemisError
from themis_core.messages import BackendStats
from themis_engine.crossing import Crossing
from themis_engine.runner import ModelRunner
from themis_engine.sequence import Group, Sequence
from themis_engine.stepper import Stepper

T = TypeVar("T")
_log = logging.getLogger("themis.engine")


@dataclass(frozen=True, slots=True)
class _Add:
    group: Group


@dataclass(frozen=True, slots=True)
class _Cancel:
    group: Group


@dataclass(frozen=True, slots=True)
class _Finish:
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[Stepper], Any]
    future: Future[Any]


class _Stop:
    pass


_Command = _Add | _Cancel | _Finish | _Call | _Stop


class EngineLoop:
    """Runs a runner in its own thread, from loading to closing it.

    `load` gives the stepper around a loaded runner, and `on_ready` is called on the event loop with
    the runner, or with the error of loading.
    """

    def __init__(
        self,
        load: Callable[[], tuple[ModelRunner, Stepper]],
        crossing: Crossing,
        on_ready: Callable[[ModelRunner | ThemisError], None],
        *,
        name: str,
    ) -> None:
        self._load = load
        self._crossing = crossing
        self._on_ready = on_ready
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._stepper: Stepper | None = None
        self._ended: ThemisError | None = None
        # A daemon: a program that forgets to close its backend can still end.
        self._thread = threading.Thread(target=self._run, name=f"themis-{name}", daemon=True)

    @property
    def ended(self) -> ThemisError | None:
        """Why the loop has ended, if it has."""
        return self._ended

    def start(self) -> None:
        """Begin loading."""
        self._thread.start()

    def submit(self, group: Group) -> None:
        """From any thread: begin a request. Raises the reason if the loop has ended."""
        self._inbox.put(_Add(group))
        # The loop sets `_ended` before it empties its inbox for the last time, so whatever the
        # order, a request is either failed there or refused here.
        if self._ended is not None:
            raise copy.copy(self._ended)

    def call(self, function: Callable[[Stepper], T]) -> Future[T]:
        """From any thread: run a function on the engine's thread, between two steps."""
        future: Future[T] = Future()
        self._inbox.put(_Call(function, future))
        # As in `submit`; if the loop was quicker, the future has the reason already.
        if self._ended is not None and future.cancel():
            raise copy.copy(self._ended)
        return future

    def cancel(self, group: Group) -> None:
        """From any thread: the caller has gone. Finished requests are ignored."""
        self._inbox.put(_Cancel(group))
        if self._stepper is not None:
            self._stepper.abandon(group)

    def finish(self, sequence: Sequence) -> None:
        """From any thread: its text has ended this choice."""
        self._inbox.put(_Finish(sequence))

    def stop(self) -> None:
        """From any thread: end the loop; what still runs fails with `BackendClosed`."""
        self._inbox.put(_Stop())

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def stats(self) -> BackendStats:
        """A snapshot; its numbers can be from two neighbouring steps."""
        return self._stepper.stats() if self._stepper else BackendStats()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            runner, stepper = self._load()
        except ThemisError as error:
            self._crossing.call(self._on_ready, error)
            return
        # This is the root of the thread: whatever a runner raises, who starts it must hear of it.
        except BaseException as error:  # noqa: BLE001
            failure = ModelLoadFailed(f"Loading the model failed: {error!r}.")
            failure.__cause__ = error
            self._crossing.call(self._on_ready, failure)
            return
        try:
            self._stepper = stepper
            self._crossing.call(self._on_ready, runner)
            self._ended = self._serve(stepper)
            self._empty_inbox(stepper, self._ended)
            stepper.fail_all(self._ended)
            self._crossing.flush()
            if isinstance(self._ended, BackendClosed):
                stepper.give_up_prefixes()
        finally:
            try:
                stepper.close()
            finally:
                runner.close()

    def _serve(self, stepper: Stepper) -> ThemisError:
        """Step until told to stop, or until stepping itself fails. Returns why it ended."""
        try:
            while self._take_in(stepper):
                stepper.step()
                if not self._crossing.flush():
                    _log.warning("The event loop was closed before the backend.")
                    break
        # A defect here must fail the callers, who would otherwise wait for ever.
        except BaseException as error:  # noqa: BLE001
            _log.exception("The engine failed.")
            failure = BackendFailed(f"The engine failed: {error!r}.")
            failure.__cause__ = error
            return failure
        return BackendClosed("The backend was closed.")

    def _take_in(self, stepper: Stepper) -> bool:
        """Obey all commands, waiting for one if there is nothing to do. False: stop."""
        block = stepper.idle
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return True
            block = False
            match command:
                case _Add(group):
                    stepper.add(group)
                case _Cancel(group):
                    stepper.cancel(group)
                case _Finish(sequence):
                    stepper.finish(sequence)
                case _Call(function, future):
                    _answer(function, stepper, future)
                case _Stop():
                    return False

    def _empty_inbox(self, stepper: Stepper, ended: ThemisError) -> None:
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, _Add):
                stepper.add(command.group)
            elif isinstance(command, _Call) and command.future.set_running_or_notify_cancel():
                command.future.set_exception(copy.copy(ended))


def _answer(function: Callable[[Stepper], T], stepper: Stepper, future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return  # Nobody waits for it any more, and it has not begun.
    try:
        future.set_result(function(stepper))
    except ThemisError as error:
        future.set_exception(error)
    # Native code may raise anything; who called must hear of it, and the loop go on.
    except Exception as error:  # noqa: BLE001
        failure = BackendFailed(f"The model failed: {error!r}.")
        failure.__cause__ = error
        future.set_exception(failure)
