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
        "tool_choice",
        "parallel_tool_calls",
        "template_options",
        "truncate_prompt_tokens",
        "constraint",
        "adapters",
        "priority",
        "cache_salt",
        "resume_token_ids",
        "sampling.min_tokens",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.min_p",
        "sampling.typical_p",
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


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """How often a value fell where. `counts` has one entry more than `bounds`.

    `counts[i]` is of values up to and including `bounds[i]` and above the bound before; the last
    is of all that are larger. `total` is the sum of all values.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total: float = 0.0


class BackendStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since start, and gauges of this moment. KV figures are in tokens.

    `steps` counts model evaluations; `cancelled` counts requests whose caller went away.
    `cached_tokens` of the `prompt_tokens` came from the prefix cache. `kv_used` is what running
    sequences hold, `kv_cached` what is only kept for later and given up when room is needed.
    `drafted_tokens` were proposed by speculation, `accepted_tokens` of them were right.
    `ttft` and `tpot` are in seconds, `batch_sizes` in sequences of one step.
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
    cached_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    kv_used: int = 0
    kv_cached: int = 0
    kv_capacity: int = 0
    ttft: Histogram = Histogram()
    tpot: Histogram = Histogram()
    batch_sizes: Histogram = Histogram()
