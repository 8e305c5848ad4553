"""The state of a request and of its sequences while the engine works on them.

Only the engine thread changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from themis_core.messages import AdapterWeight, GenerateRequest, SamplingParams
from themis_engine.crossing import EventStream
from themis_engine.kv import PrefixKey

if TYPE_CHECKING:  # Only constrained requests load the grammar library.
    from themis_engine.constraint import Matcher


@dataclass(slots=True, eq=False)
class Group:
    """One request: a sequence for each of its `n` choices.

    Times are on the clock of `time.monotonic`; `first_token` is 0 before there is one. `abandoned`
    is set by other threads: nobody waits any more, and the command to cancel it is on its way.
    """

    request: GenerateRequest
    stream: EventStream
    submitted: float
    deadline: float | None = None
    sequences: list[Sequence] = field(default_factory=list)
    started: bool = False
    cached: int = 0
    first_token: float = 0.0
    closed: bool = False
    abandoned: bool = False


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what was generated after it, for choice `index`.

    `tokens` is prompt plus output; the first `computed` of them are in the KV cache under the
    runner's sequence id `slot` (-1: none). `limit` is the most tokens that may be generated.
    `drafts` are guesses at the next tokens, computed with the next step and then verified.
    `acceptance` is how often such guesses were right lately.
    """

    group: Group
    index: int
    tokens: list[int]
    prompt_length: int
    limit: int
    seed: int
    arrival: int
    key: PrefixKey = field(default_factory=PrefixKey)
    matcher: Matcher | None = None
    slot: int = -1
    computed: int = 0
    drafts: list[int] = field(default_factory=list)
    acceptance: float = 0.7
    closed: bool = False
    sampling: SamplingParams = field(init=False)

    def __post_init__(self) -> None:
        self.sampling = self.group.request.sampling

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def decoding(self) -> bool:
        """True if all but the last token is computed: each step gives a new one."""
        return self.computed == len(self.tokens) - 1 and self.slot >= 0

    @property
    def priority(self) -> int:
        """That of the request; higher goes first."""
        return self.group.request.priority

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.group.request.tenant or ""

    @property
    def adapters(self) -> tuple[AdapterWeight, ...]:
        """The LoRA adapters that it is computed with."""
        return self.key.adapters
