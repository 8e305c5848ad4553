"""Leaving a server alone that fails all the time, and trying it again with one request."""

from __future__ import annotations


class Breaker:
    """`most` failures in a row close it off for `pause` seconds; then one request may try.

    Times are those of one monotonic clock.
    """

    def __init__(self, most: int, pause: float) -> None:
        self._most = most
        self._pause = pause
        self._failures = 0
        self._until = 0.0
        self._trying = False

    def allows(self, now: float) -> bool:
        """Whether a request may go there now."""
        if self._failures < self._most:
            return True
        return now >= self._until and not self._trying

    def begin(self) -> None:
        """A request goes there; it calls exactly one of the other three."""
        if self._failures >= self._most:
            self._trying = True

    def succeeded(self) -> None:
        """The server answered, be it with an error of the request."""
        self._failures = 0
        self._trying = False

    def failed(self, now: float) -> None:
        """The server, or the way there, failed."""
        self._failures += 1
        self._trying = False
        if self._failures >= self._most:
            self._until = now + self._pause

    def abandoned(self) -> None:
        """The request was cancelled before anything was known."""
        self._trying = False
