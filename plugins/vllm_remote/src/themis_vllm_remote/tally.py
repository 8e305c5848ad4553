"""The counters of one backend: what it asked of vLLM, and what came."""

from __future__ import annotations

from types import TracebackType

from themis_core.errors import ThemisError
from themis_core.messages import BackendStats


class Tally:
    """Counts requests. `BackendStats` are of this backend alone, not of the server's others."""

    def __init__(self) -> None:
        self.requests = self.finished = self.cancelled = self.failed = 0
        self.open = self.running = 0
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = self.steps = 0

    def stats(self) -> BackendStats:
        """The counters now."""
        return BackendStats(
            requests=self.requests,
            finished=self.finished,
            cancelled=self.cancelled,
            failed=self.failed,
            running=self.running,
            waiting=self.open - self.running,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            steps=self.steps,
        )


class Counted:
    """Around one request. It counts as cancelled unless it was finished, or raised an error."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._began = self._finished = False

    def __enter__(self) -> Counted:
        self._tally.requests += 1
        self._tally.open += 1
        return self

    def began(self, prompt_tokens: int, cached_tokens: int) -> None:
        """The server has begun to answer."""
        self._began = True
        self._tally.running += 1
        self._tally.prompt_tokens += prompt_tokens
        self._tally.cached_tokens += cached_tokens

    def tokens(self, count: int) -> None:
        """New tokens came."""
        self._tally.steps += 1
        self._tally.completion_tokens += count

    def finished(self) -> None:
        """Everything came."""
        self._finished = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tally = self._tally
        tally.open -= 1
        tally.running -= self._began
        if self._finished:
            tally.finished += 1
        elif isinstance(error, ThemisError):
            tally.failed += 1
        else:
            tally.cancelled += 1
