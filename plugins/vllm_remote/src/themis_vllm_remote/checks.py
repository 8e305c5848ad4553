"""What vLLM cannot do, or would do differently without a word: refused before it gets there."""

from __future__ import annotations

import hashlib

import msgspec

from themis_core.errors import InvalidRequest, PromptTooLong, UnsupportedField
from themis_core.messages import AdapterWeight, GenerateRequest

_LOWEST_TEMPERATURE = 0.01
_HIGHEST_TEMPERATURE = 2.0
_SEEDS = 2**62  # Of vLLM's 64 bits: choices add their index, and -1 would mean none.


def check_sampling(request: GenerateRequest, plugin: str) -> None:
    """Raises `UnsupportedField` for values that vLLM would change, or does not take."""
    temperature = request.sampling.temperature
    if 0.0 < temperature < _LOWEST_TEMPERATURE or temperature > _HIGHEST_TEMPERATURE:
        raise UnsupportedField(
            f"temperature is {temperature}. vLLM raises what is below {_LOWEST_TEMPERATURE} to it, "
            f"and takes nothing above {_HIGHEST_TEMPERATURE:g}.",
            field="sampling.temperature",
            remedy=f"Use 0 (greedy), or {_LOWEST_TEMPERATURE} to {_HIGHEST_TEMPERATURE:g}.",
            plugin=plugin,
        )


def one_adapter(leased: tuple[AdapterWeight, ...], plugin: str) -> str | None:
    """The adapter of a request. Raises `UnsupportedField` for what only other backends can."""
    if not leased:
        return None
    if len(leased) > 1 or leased[0].weight != 1.0:
        raise UnsupportedField(
            "vLLM applies one adapter to a request, and as it was trained: weight 1.",
            field="adapters",
            remedy="Name one adapter with weight 1, or merge them before loading.",
            plugin=plugin,
        )
    return leased[0].name


def salt_of(request: GenerateRequest, *, shared: bool) -> str | None:
    """What separates the prefixes of tenants in vLLM's cache; `shared`: only the request's own."""
    tenant = None if shared else request.tenant
    if tenant is None and request.cache_salt is None:
        return None
    key = msgspec.msgpack.encode((tenant, request.cache_salt))
    return hashlib.blake2b(key, digest_size=16).hexdigest()


def seed_of(seed: int | None) -> int | None:
    """A seed that vLLM takes: one in 2**62, always the same for the same."""
    return None if seed is None else seed % _SEEDS


def check_length(prompt: int, request: GenerateRequest, context: int, plugin: str) -> int:
    """The number of tokens to ask for. Raises `PromptTooLong` where vLLM would shorten."""
    asked = request.sampling.max_tokens
    needed = prompt + (asked or 1)
    if needed > context:
        also = f" and max_tokens={asked}" if asked else ""
        raise PromptTooLong(
            f"The prompt of {prompt} tokens{also} needs {needed} positions, but the server's "
            f"context has {context}.",
            field="prompt" if prompt >= context else "sampling.max_tokens",
            remedy="Shorten the prompt, lower max_tokens, or start vLLM with a larger "
            "--max-model-len.",
            plugin=plugin,
        )
    return asked or context - prompt


def check_ids(field: str, ids: tuple[int, ...] | dict[int, float], vocab: int, plugin: str) -> None:
    """Raises `InvalidRequest` for ids that cannot be; `vocab` 0: their number is not known."""
    wrong = next((i for i in ids if i < 0 or (vocab and i >= vocab) or i >= 2**31), None)
    if wrong is not None:
        most = f"{vocab - 1}" if vocab else "the end of the vocabulary"
        raise InvalidRequest(
            f"{field} has token id {wrong}, but the model's ids go from 0 to {most}.",
            field=field,
            plugin=plugin,
        )
