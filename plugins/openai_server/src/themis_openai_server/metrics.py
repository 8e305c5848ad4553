"""The figures of loaded models and of hooks, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from themis_core.messages import BackendStats, Histogram
from themis_core.runtime import HookStats

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram"]

# Field of `BackendStats` → name, kind and help. A test compares with its fields.
METRICS: dict[str, tuple[str, Kind, str]] = {
    "requests": ("themis_requests_total", "counter", "Requests accepted."),
    "finished": ("themis_requests_finished_total", "counter", "Requests answered to the end."),
    "cancelled": ("themis_requests_cancelled_total", "counter", "Requests whose caller left."),
    "failed": ("themis_requests_failed_total", "counter", "Requests that ended in an error."),
    "running": ("themis_requests_running", "gauge", "Requests being computed."),
    "waiting": ("themis_requests_waiting", "gauge", "Requests waiting for room."),
    "prompt_tokens": ("themis_prompt_tokens_total", "counter", "Tokens of prompts."),
    "completion_tokens": ("themis_completion_tokens_total", "counter", "Tokens generated."),
    "cached_tokens": (
        "themis_cached_prompt_tokens_total",
        "counter",
        "Tokens of prompts that came from the prefix cache.",
    ),
    "steps": ("themis_steps_total", "counter", "Evaluations of the model."),
    "preemptions": (
        "themis_preemptions_total",
        "counter",
        "Running requests that lost their KV cache to others and are computed again.",
    ),
    "drafted_tokens": ("themis_drafted_tokens_total", "counter", "Tokens that were guessed."),
    "accepted_tokens": ("themis_accepted_tokens_total", "counter", "Guessed tokens that held."),
    "kv_used": ("themis_kv_used_tokens", "gauge", "KV cache held by running requests."),
    "kv_cached": ("themis_kv_cached_tokens", "gauge", "KV cache kept for later requests."),
    "kv_capacity": ("themis_kv_capacity_tokens", "gauge", "Size of the KV cache."),
    "ttft": ("themis_time_to_first_token_seconds", "histogram", "Time to the first token."),
    "tpot": ("themis_time_per_output_token_seconds", "histogram", "Time per further token."),
    "batch_sizes": ("themis_batch_size_sequences", "histogram", "Sequences of one step."),
}


# The same for `HookStats`, without the fields that are labels.
HOOK_METRICS: dict[str, tuple[str, Kind, str]] = {
    "seconds": (
        "themis_hook_seconds",
        "histogram",
        "Time of the calls of a validator or quota.",
    ),
    "timeouts": (
        "themis_hook_timeouts_total",
        "counter",
        "Calls of a validator or quota that took longer than their budget.",
    ),
    "failures": (
        "themis_hook_failures_total",
        "counter",
        "Calls of a validator or quota that failed.",
    ),
}


def exposition(stats: Mapping[str, BackendStats], hooks: Sequence[HookStats] = ()) -> bytes:
    """All metrics: of the loaded models, labelled by model; of hooks, labelled by hook and call."""
    models = [(f'model="{_escaped(model)}"', values) for model, values in stats.items()]
    calls = [(f'hook="{_escaped(h.hook)}",call="{_escaped(h.call)}"', h) for h in hooks]
    lines = [*_family(METRICS, models), *_family(HOOK_METRICS, calls)]
    return "".join(f"{line}\n" for line in lines).encode()


def _family(
    metrics: Mapping[str, tuple[str, Kind, str]], rows: Sequence[tuple[str, object]]
) -> Iterator[str]:
    """Metrics with the same labels; `rows` are labels and the struct with the values."""
    for field, (name, kind, text) in metrics.items():
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        for label, values in rows:
            value = getattr(values, field)
            if isinstance(value, Histogram):
                yield from _histogram(name, label, value)
            else:
                yield f"{name}{{{label}}} {value}"


def _histogram(name: str, label: str, histogram: Histogram) -> Iterator[str]:
    """Buckets count all values up to their bound, so they are added up."""
    count = 0
    for bound, more in zip([*histogram.bounds, "+Inf"], histogram.counts, strict=True):
        count += more
        yield f'{name}_bucket{{{label},le="{bound}"}} {count}'
    yield f"{name}_sum{{{label}}} {histogram.total}"
    yield f"{name}_count{{{label}}} {count}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
