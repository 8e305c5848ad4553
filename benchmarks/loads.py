"""The loads: who asks for what, of which servers, and what Themis is to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from benchmarks import traffic
from benchmarks.model import Kind
from benchmarks.peers import EXAMPLE, NATIVE, PLAIN, PYTHON, THEMIS
from benchmarks.traffic import Traffic

Metric = Literal["tokens_per_second", "ttft_p50", "ttft_p99", "tpot_p50", "cpu_per_token", "memory"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of Themis over `peer`: at least so much, or for times `at_most`."""

    peer: str
    clients: int
    ratio: float
    metric: Metric = "tokens_per_second"

    def met(self, ratio: float) -> bool:
        """Whether that ratio is good enough."""
        if self.metric == "tokens_per_second":
            return ratio >= self.ratio
        return ratio <= self.ratio


@dataclass(frozen=True, slots=True)
class Load:
    """One comparison. `make` gives the traffic for a number of requests and a seed.

    `turns` are requests for each client of a measurement, `quick_turns` those of a trial. `context`
    is what a sequence needs, in tokens. `reuse` says that prompts begin alike. `settings` are those
    of Themis's model that differ from its defaults.
    """

    name: str
    title: str
    make: Callable[[int, int], Traffic]
    clients: tuple[int, ...]
    context: int
    turns: int = 2
    quick_turns: int = 1
    least: int = 1
    peers: tuple[str, ...] = (THEMIS, NATIVE)
    model: Kind = "random"
    reuse: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()

    def requests(self, clients: int, *, quick: bool) -> int:
        """How many requests they share in one measurement."""
        return clients * self.quick_turns if quick else max(self.least, clients * self.turns)


# As the C++ server is set: a part of the KV cache for each sequence, none of it shared.
_SPLIT = {"kv_unified": False}

LOADS: dict[str, Load] = {
    load.name: load
    for load in (
        Load(
            name="unique",
            title="Unique prompts of 64 tokens, 64 new tokens",
            make=partial(traffic.unique, tokens=64, new=64),
            clients=(1, 8, 16, 32),
            context=256,
            least=5,
            peers=(THEMIS, NATIVE, PYTHON, EXAMPLE),
            settings=_SPLIT,
            goals=(
                Goal(NATIVE, 1, 1.0),
                Goal(NATIVE, 8, 1.05),
                Goal(NATIVE, 32, 1.1),
                Goal(PYTHON, 16, 6.0),
                Goal(EXAMPLE, 16, 1.2),
            ),
        ),
        Load(
            name="prefix",
            title="A new prefix of 1,000 tokens that all share, tails of 32, 64 new tokens",
            make=partial(traffic.shared_prefix, prefix=1000, tail=32, new=64),
            clients=(16,),
            context=1152,
            turns=3,
            quick_turns=2,
            peers=(THEMIS, NATIVE, EXAMPLE),
            reuse=True,
            goals=(Goal(NATIVE, 16, 3.0),),
        ),
        Load(
            name="schema",
            title="JSON by a schema, from a model that writes such JSON by itself",
            make=partial(traffic.records, new=256),
            clients=(8,),
            context=640,
            turns=3,
            model="copying",
            settings=_SPLIT,
            goals=(Goal(NATIVE, 8, 1.5),),
        ),
        Load(
            name="schema-random",
            title="JSON by a schema, from a model that is against it at every token",
            make=partial(traffic.records, new=256),
            clients=(8,),
            context=640,
            turns=3,
            settings=_SPLIT,
            goals=(Goal(NATIVE, 8, 1.5),),
        ),
        Load(
            name="repeated",
            title="The same four prompts of 256 tokens again and again, 64 new tokens",
            make=partial(traffic.repeated, different=4, tokens=256, new=64),
            clients=(8,),
            context=384,
            turns=4,
            quick_turns=2,
            peers=(THEMIS, NATIVE, EXAMPLE),
            reuse=True,
        ),
        Load(
            name="mixed",
            title="6 clients with prompts of 32 tokens, 32 new; 2 with 1,500 tokens, 32 new",
            make=partial(traffic.mixed, tokens=32, new=32, long=1500, long_new=32, others=2),
            clients=(8,),
            context=1600,
            turns=15,
            quick_turns=2,
            settings=_SPLIT,
            goals=(Goal(NATIVE, 8, 0.5, "ttft_p99"),),
        ),
        Load(
            name="speculation",
            title="Writing a text of the prompt down once more: 300 tokens, 256 new ones",
            make=partial(traffic.copied, tokens=300, new=256),
            clients=(1,),
            context=640,
            turns=6,
            quick_turns=2,
            peers=(THEMIS, PLAIN),
            model="copying",
            settings={**_SPLIT, "speculation": "lookup"},
            goals=(Goal(PLAIN, 1, 2.0),),
        ),
    )
}
