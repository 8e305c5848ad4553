"""The state of one sequence while the engine works on it. Only the engine thread changes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from themis_core.messages import GenerateRequest, SamplingParams
from themis_engine.crossing import EventStream
from themis_engine.text import TextStream


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what was generated after it.

    `tokens` is prompt plus output; the first `computed` of them are in the KV cache under the
    runner's sequence id `slot` (-1: none). `limit` is the most tokens that may be generated.
    `deadline` is on the clock of `time.monotonic`.
    """

    request: GenerateRequest
    stream: EventStream
    prompt_length: int
    tokens: list[int]
    limit: int
    seed: int
    arrival: int
    text: TextStream
    deadline: float | None = None
    slot: int = -1
    computed: int = 0
    started: bool = False
    closed: bool = False
    sampling: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        self.sampling = self.request.sampling

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service: lowest first."""
        return (-self.request.priority, self.arrival)
