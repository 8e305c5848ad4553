"""A KV cache as bytes: magic, BLAKE2b hash of the rest, length of the adapters, adapters, numbers.

The hash finds damage; it has no key, so it is no protection against forgery.
"""

from __future__ import annotations

import hashlib
import struct

import msgspec
import numpy as np

from themis_core.errors import BackendFailed
from themis_core.messages import AdapterWeight
from themis_testkit.reference.llama import KVCache

_HEAD = struct.Struct("<4s16sI")
_MAGIC = b"TREF"


def pack(cache: KVCache, adapters: tuple[AdapterWeight, ...]) -> bytes:
    """All keys, then all values, layer by layer, as float32."""
    names = msgspec.json.encode(adapters)
    rest = names + b"".join(array.tobytes() for array in (*cache.keys, *cache.values))
    return _HEAD.pack(_MAGIC, _digest(len(names), rest), len(names)) + rest


def unpack(state: bytes, empty: KVCache) -> tuple[KVCache, tuple[AdapterWeight, ...]]:
    """What was packed of a model whose empty cache this is. Raises `BackendFailed`."""
    if len(state) < _HEAD.size:
        raise BackendFailed("A saved state is truncated.")
    magic, digest, length = _HEAD.unpack_from(state)
    rest = state[_HEAD.size :]
    if magic != _MAGIC or digest != _digest(length, rest):
        raise BackendFailed("A saved state is damaged.")
    adapters = msgspec.json.decode(rest[:length], type=tuple[AdapterWeight, ...])
    layers = len(empty.keys)
    shape = (2 * layers, -1, *empty.keys[0].shape[1:])
    try:
        # Sliced, so that the numbers are aligned: then they are computed with as they were.
        numbers = np.frombuffer(rest[length:], np.float32).reshape(shape)
    except ValueError as error:
        raise BackendFailed(f"A saved state is of another model: {error}.") from error
    return KVCache(tuple(numbers[:layers]), tuple(numbers[layers:])), adapters


def _digest(length: int, rest: bytes) -> bytes:
    return hashlib.blake2b(struct.pack("<I", length) + rest, digest_size=16).digest()
