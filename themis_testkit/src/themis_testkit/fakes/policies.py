"""An in-memory cache, quota and validator that record their calls."""

from __future__ import annotations

from themis_core.errors import QuotaExceeded, RequestRejected
from themis_core.messages import GenerateRequest, Usage


class FakeCache:
    """Keeps everything in `entries`; `gets` and `puts` are the keys asked for, in order."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.gets: list[bytes] = []
        self.puts: list[bytes] = []
        self.closes = 0

    async def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        self.gets.append(key)
        return self.entries.get(key)

    async def put(self, key: bytes, value: bytes) -> None:
        """Store a value."""
        self.puts.append(key)
        self.entries[key] = value

    async def aclose(self) -> None:
        """Count the call."""
        self.closes += 1


class FakeReservation:
    """`settled` is the usage it was settled with; asserts that it is ended once."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.settled: Usage | None = None
        self.released = False

    @property
    def open(self) -> bool:
        """True until it is settled or released."""
        return self.settled is None and not self.released

    async def settle(self, usage: Usage) -> None:
        """End it with what was used."""
        assert self.open, "a reservation was ended twice"
        self.settled = usage

    async def release(self) -> None:
        """End it without use."""
        assert self.open, "a reservation was ended twice"
        self.released = True


class FakeQuota:
    """Grants `grants` reservations (None: any number), then raises `QuotaExceeded`."""

    def __init__(self, grants: int | None = None) -> None:
        self._grants = grants
        self.reservations: list[FakeReservation] = []
        self.closes = 0

    async def reserve(self, request: GenerateRequest) -> FakeReservation:
        """A reservation, which stays in `reservations`."""
        if self._grants is not None and len(self.reservations) >= self._grants:
            raise QuotaExceeded(f"All {self._grants} reservations are granted.", field="tenant")
        self.reservations.append(FakeReservation(request))
        return self.reservations[-1]

    async def aclose(self) -> None:
        """Count the call."""
        self.closes += 1


class FakeValidator:
    """Rejects prompts and answers that contain `forbidden`, wherever tokens divide it.

    `inputs` are the requests seen, `outputs` the answers that were let through.
    """

    def __init__(self, forbidden: str) -> None:
        assert forbidden
        self._forbidden = forbidden
        self.inputs: list[GenerateRequest] = []
        self.outputs: list[str] = []
        self.closes = 0

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        """The request, unchanged. Raises `RequestRejected`."""
        self.inputs.append(request)
        texts = [message.content for message in request.messages]
        if isinstance(request.prompt, str):
            texts.append(request.prompt)
        if any(self._forbidden in text for text in texts):
            raise RequestRejected(f"The prompt contains {self._forbidden!r}.", field="prompt")
        return request

    def check_output(self, request: GenerateRequest) -> FakeOutputCheck:
        """A check for one choice."""
        return FakeOutputCheck(self._forbidden, self.outputs)

    async def aclose(self) -> None:
        """Count the call."""
        self.closes += 1


class FakeOutputCheck:
    """Holds back as much as the forbidden text could begin with."""

    def __init__(self, forbidden: str, outputs: list[str]) -> None:
        self._forbidden = forbidden
        self._outputs = outputs
        self._text = ""
        self._sent = 0

    def push(self, text: str) -> str:
        """What may be sent on now. Raises `RequestRejected`."""
        self._text += text
        if self._forbidden in self._text:
            raise RequestRejected(f"The answer contains {self._forbidden!r}.")
        return self._send(len(self._text) - len(self._forbidden) + 1)

    def finish(self) -> str:
        """The rest."""
        self._outputs.append(self._text)
        return self._send(len(self._text))

    def _send(self, end: int) -> str:
        start, self._sent = self._sent, max(self._sent, end)
        return self._text[start : self._sent]
