"""What a model says of itself."""

from __future__ import annotations

import msgspec

# The fields of a request that a backend honours only if it declares them. Everything else
# (prompt, messages, max_tokens, stop, timeout, …) every backend must honour.
OPTIONAL_FIELDS = frozenset(
    {
        "prompt_token_ids",
        "messages",
        "tools",
        "constraint",
        "adapters",
        "priority",
        "sampling.min_tokens",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.min_p",
        "sampling.repetition_penalty",
        "sampling.frequency_penalty",
        "sampling.presence_penalty",
        "sampling.logit_bias",
        "sampling.seed",
        "sampling.n",
        "sampling.logprobs",
        "sampling.stop_token_ids",
        "sampling.ignore_eos",
    }
)


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do. `request_fields` is a subset of `OPTIONAL_FIELDS`.

    `deterministic` means that greedy output is the same on each run. `batch_invariant` means that
    it, and sampled output with a seed, does not depend in the last bit on what else is computed:
    without it, a token can change where two are almost equally probable.
    """

    generate: bool = True
    embed: bool = False
    tokenize: bool = False
    adapters: bool = False
    deterministic: bool = True
    batch_invariant: bool = True
    request_fields: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.request_fields - OPTIONAL_FIELDS
        if unknown:
            raise ValueError(f"request_fields has unknown names: {sorted(unknown)}")


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A started model. Lengths in tokens, size in bytes; 0 where the backend cannot know."""

    backend: str
    context_length: int = 0
    vocab_size: int = 0
    parameters: int = 0
    size_bytes: int = 0
    description: str = ""
    capabilities: Capabilities = Capabilities()


class BackendStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since start, and gauges of this moment. KV figures are in tokens.

    `steps` counts model evaluations; `cancelled` counts requests whose caller went away.
    """

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    kv_used: int = 0
    kv_capacity: int = 0
