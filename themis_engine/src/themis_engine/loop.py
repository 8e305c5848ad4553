"""The token loop: one thread that owns the runner and computes step after step."""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from themis_core.errors import BackendClosed, BackendFailed, ModelLoadFailed, ThemisError
from themis_core.messages import BackendStats
from themis_engine.crossing import Crossing
from themis_engine.runner import ModelRunner
from themis_engine.sequence import Sequence
from themis_engine.stepper import Stepper

_log = logging.getLogger("themis.engine")


@dataclass(frozen=True, slots=True)
class _Add:
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class _Cancel:
    sequence: Sequence


class _Stop:
    pass


class EngineLoop:
    """Runs a runner in its own thread, from loading to closing it.

    `on_ready` is called on the event loop with the loaded runner, or with the error of loading.
    """

    def __init__(
        self,
        load: Callable[[], ModelRunner],
        crossing: Crossing,
        on_ready: Callable[[ModelRunner | ThemisError], None],
        *,
        name: str,
        prefill_chunk: int,
    ) -> None:
        self._load = load
        self._crossing = crossing
        self._on_ready = on_ready
        self._prefill_chunk = prefill_chunk
        self._inbox: queue.SimpleQueue[_Add | _Cancel | _Stop] = queue.SimpleQueue()
        self._stepper: Stepper | None = None
        self._ended: ThemisError | None = None
        # A daemon: a program that forgets to close its backend can still end.
        self._thread = threading.Thread(target=self._run, name=f"themis-{name}", daemon=True)

    def start(self) -> None:
        """Begin loading."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """From any thread: begin a sequence. Raises the reason if the loop has ended."""
        self._inbox.put(_Add(sequence))
        # The loop sets `_ended` before it empties its inbox for the last time, so whatever the
        # order, a sequence is either failed there or refused here.
        if self._ended is not None:
            raise copy.copy(self._ended)

    def cancel(self, sequence: Sequence) -> None:
        """From any thread: the caller has gone. Finished sequences are ignored."""
        self._inbox.put(_Cancel(sequence))

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
            runner, stepper = self._begin()
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
            self._empty_inbox(stepper)
            stepper.fail_all(self._ended)
            self._crossing.flush()
        finally:
            runner.close()

    def _begin(self) -> tuple[ModelRunner, Stepper]:
        runner = self._load()
        try:
            return runner, Stepper(runner, self._crossing, self._prefill_chunk)
        except BaseException:  # Whatever is wrong with the runner, it must be closed.
            runner.close()
            raise

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
                case _Add(sequence):
                    stepper.add(sequence)
                case _Cancel(sequence):
                    stepper.cancel(sequence)
                case _Stop():
                    return False

    def _empty_inbox(self, stepper: Stepper) -> None:
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, _Add):
                stepper.add(command.sequence)
