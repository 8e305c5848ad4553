"""The state of one sequence as bytes: what llama.cpp writes, behind a header that is checked.

llama.cpp believes what a state says: lying positions would be taken over, and a later step would
compute nonsense or end the process. So the header has the length and a hash of what follows, and
nothing reaches llama.cpp that does not agree with them. The hash has no key: it finds damage, not
forgery. Whoever keeps states where others can write must protect them by other means.

Layout, little-endian: magic, tokens (uint32), bytes that follow (uint64), BLAKE2b of those (16
bytes), llama.cpp's bytes. Only the same llama.cpp with the same model and cache can read them:
compare `RunnerInfo.fingerprint` first.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from typing import Any

from themis_core.errors import BackendFailed
from themis_llamacpp import log
from themis_llamacpp.native import lib

_HEAD = struct.Struct("<4sIQ16s")
_MAGIC = b"TKV1"


def read_out(context: Any, sequence: int, length: int) -> bytes:
    """The state of a sequence that holds `length` tokens. Raises `BackendFailed`."""
    log.clear()
    size = lib.llama_state_seq_get_size(context, sequence)
    if size <= 0:
        raise BackendFailed(f"The state cannot be saved: {log.reason()}.", plugin="llamacpp")
    data = bytearray(_HEAD.size + size)
    native = (ctypes.c_uint8 * size).from_buffer(data, _HEAD.size)
    written = lib.llama_state_seq_get_data(context, native, size, sequence)
    if written != size:
        raise BackendFailed(f"The state cannot be saved: {log.reason()}.", plugin="llamacpp")
    _HEAD.pack_into(data, 0, _MAGIC, length, size, _digest(memoryview(data)[_HEAD.size :]))
    return bytes(data)


def put_in(context: Any, sequence: int, state: bytes, length: int) -> None:
    """Give a saved state to an empty sequence. Raises `BackendFailed`; it may then hold parts."""
    native = _checked(state, length)
    log.clear()
    # The type is a pointer to bytes that may be written; llama.cpp only reads them.
    pointer = ctypes.cast(ctypes.c_char_p(state), ctypes.c_void_p).value or 0
    start = ctypes.cast(pointer + _HEAD.size, ctypes.POINTER(ctypes.c_uint8))
    taken = lib.llama_state_seq_set_data(context, start, len(native), sequence)
    if taken != len(native):
        raise _unusable(log.reason())


def _checked(state: bytes, length: int) -> memoryview:
    if len(state) < _HEAD.size:
        raise _unusable("it is truncated")
    magic, tokens, size, digest = _HEAD.unpack_from(state)
    native = memoryview(state)[_HEAD.size :]
    if magic != _MAGIC:
        raise _unusable("it is none of these")
    if len(native) != size:
        raise _unusable(f"it has {len(native):,} of {size:,} bytes")
    if tokens != length:
        raise _unusable(f"it is of {tokens} tokens, not {length}")
    if _digest(native) != digest:
        raise _unusable("it is damaged")
    return native


def _digest(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _unusable(why: str) -> BackendFailed:
    return BackendFailed(f"A saved state cannot be restored: {why}.", plugin="llamacpp")
