"""What becomes of every field of a request, on each way to vLLM: code and documentation alike.

`docs/vllm.md` has this as a table, and a test compares them.
"""

from __future__ import annotations

from typing import Literal

from themis_core.messages import OPTIONAL_FIELDS

Path = Literal["http", "http+tokenizer", "grpc", "engine"]
PATHS: tuple[Path, ...] = ("http", "http+tokenizer", "grpc", "engine")

_NEVER = frozenset({"priority", "resume_token_ids", "sampling.typical_p"})
_DOORS = frozenset({"cache_salt", "adapters"})

# What the doors carry of the fields that no text has to do with.
CARRIED: dict[str, frozenset[str]] = {
    "http": _DOORS,
    "grpc": frozenset(),
    "engine": _DOORS,
}
SERVER_FIELDS = OPTIONAL_FIELDS - _NEVER - _DOORS


def honoured(path: Path) -> frozenset[str]:
    """The optional fields that a model with template and adapters honours on this path.

    Where a tokenizer is at hand (all but `http`), tools need `structured = "guidance"`.
    """
    fields = OPTIONAL_FIELDS - _NEVER
    return fields - _DOORS if path == "grpc" else fields


NOTES: dict[str, str] = {
    "adapters": "one, with weight 1; others are refused. gRPC has no field for them",
    "cache_salt": "with the tenant; gRPC has no field for it",
    "constraint": 'kind lark needs `structured = "guidance"`; every finished answer is checked',
    "messages": "the server's template over plain HTTP, which reads special tokens in messages; "
    "elsewhere the model's template here, where they are text",
    "priority": "vLLM schedules first come, first served, unless started otherwise",
    "prompt_token_ids": "checked against the vocabulary, where its size is known",
    "resume_token_ids": "vLLM cannot take up a sampler where it stood",
    "sampling.logit_bias": "the HTTP and gRPC servers cut biases to ±100",
    "sampling.logprobs": "over plain HTTP, bytes of a part of a character are U+FFFD",
    "sampling.seed": "taken modulo 2**62, over gRPC modulo 2**30",
    "sampling.n": "greedy choices are equal, and computed once",
    "sampling.temperature": "0, or 0.01 to 2: vLLM would raise what is lower, and takes no more",
    "sampling.typical_p": "vLLM does not know it",
    "tool_choice": 'over plain HTTP with `structured = "native"` only, for a server with xgrammar',
    "tools": 'over plain HTTP by the server\'s parser; elsewhere with `structured = "guidance"`',
    "truncate_prompt_tokens": "over plain HTTP not with messages",
}


def table() -> str:
    """The table of the documentation, in Markdown."""
    heads = ["field", *(f"`{path}`" for path in PATHS), "remarks"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in sorted(OPTIONAL_FIELDS):
        cells = ["honoured" if name in honoured(path) else "refused" for path in PATHS]
        lines.append("| " + " | ".join([f"`{name}`", *cells, NOTES.get(name, "")]) + " |")
    return "\n".join(lines)
