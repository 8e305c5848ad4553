"""Shared memory for bulk: a sealed memfd for each direction of a connection.

The producer alone allocates, in lists of its own memory; the consumer maps what it is told to,
read-only, and says when it is done. Nothing in shared memory is trusted or waited for. The seals
mean that neither side can shrink the file under the other's feet (SIGBUS), and that only the
producer's mapping can write.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref
from collections.abc import Callable

from themis_core.protocol import Allocation, ProtocolError

AVAILABLE = hasattr(os, "memfd_create")
_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; fcntl has no name for it.
_PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


class Block:
    """Allocated memory. It returns to the arena when the peer frees it, or when it is dropped."""

    __slots__ = ("__weakref__", "arena", "length", "memory", "offset", "sent")

    def __init__(self, arena: Arena, offset: int, length: int, memory: memoryview) -> None:
        self.arena = arena
        self.offset = offset
        self.length = length
        self.memory = memory
        self.sent = False

    def __del__(self) -> None:
        if not self.sent:
            self.arena.free(self.offset)


class Arena:
    """The producer's side."""

    def __init__(self, size: int) -> None:
        """Raises `OSError` where the kernel has no memfd, or no memory."""
        self.size = size
        self.fd = os.memfd_create("themis-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            mapping = mmap.mmap(self.fd, size)
            if hasattr(mmap, "MADV_DONTFORK"):
                mapping.madvise(mmap.MADV_DONTFORK)
            self._memory = memoryview(mapping)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _required_seals() | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(self.fd)
            raise
        self._holes: list[tuple[int, int]] = [(0, size)]
        self._blocks: dict[int, int] = {}
        self._lent: set[int] = set()

    @property
    def used(self) -> int:
        """Bytes that are allocated."""
        return sum(self._blocks.values())

    def allocate(self, size: int) -> Block | None:
        """A block of at least one page, first fit; None if no hole is large enough."""
        needed = -(-size // _PAGE) * _PAGE
        for i, (offset, length) in enumerate(self._holes):
            if length >= needed:
                if length == needed:
                    del self._holes[i]
                else:
                    self._holes[i] = (offset + needed, length - needed)
                self._blocks[offset] = needed
                return Block(self, offset, size, self._memory[offset : offset + size])
        return None

    def lend(self, size: int) -> Allocation | None:
        """As `Connection.allocate`."""
        block = self.allocate(size)
        return None if block is None else Allocation(block.memory, block)

    def sent(self, block: Block) -> None:
        """The peer has been told of a block, and frees it from now on."""
        block.sent = True
        self._lent.add(block.offset)

    def returned(self, offset: int) -> None:
        """The peer frees a block. Raises `ProtocolError` if it has none at this offset."""
        if offset not in self._lent:
            raise ProtocolError(f"nothing is lent at offset {offset}")
        self._lent.remove(offset)
        self.free(offset)

    def free(self, offset: int) -> None:
        """Take a block back."""
        length = self._blocks.pop(offset)
        holes: list[tuple[int, int]] = []
        for hole in sorted([*self._holes, (offset, length)]):
            if holes and holes[-1][0] + holes[-1][1] == hole[0]:
                holes[-1] = (holes[-1][0], holes[-1][1] + hole[1])
            else:
                holes.append(hole)
        self._holes = holes

    def close(self) -> None:
        """Close the file. The mapping goes with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._memory = memoryview(b"")
        self._holes = []


class PeerArena:
    """The consumer's side of the other's arena. Takes over `fd`."""

    def __init__(self, fd: int, size: int) -> None:
        """Raises `ProtocolError` unless the file is sealed and as large as was said."""
        self.fd = fd
        self.size = size
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            found = os.fstat(fd).st_size
        except OSError as error:
            os.close(fd)
            raise ProtocolError(f"the peer's arena is no memfd: {error}") from error
        if seals & _required_seals() != _required_seals() or found != size:
            os.close(fd)
            raise ProtocolError("the peer's arena is not sealed, or not of the size it said")
        try:
            self._mapping: _Mapping | None = _Mapping(fd, size)
        except OSError as error:
            os.close(fd)
            raise ProtocolError(f"the peer's arena cannot be mapped: {error}") from error

    def view(self, offset: int, length: int, done: Callable[[int], None]) -> memoryview:
        """The peer's memory. `done(offset)` is called when nothing refers to it any more.

        Raises `ProtocolError` for what is not in the arena.
        """
        if offset % _PAGE or not 0 < length <= self.size - offset:
            raise ProtocolError(f"{length} bytes at {offset} are not in an arena of {self.size}")
        mapping = self._mapping
        assert mapping is not None
        # An object of its own for each block: every view of the block's memory keeps it alive,
        # and it alone tells when the last of them has gone.
        block = (ctypes.c_ubyte * length).from_address(mapping.address + offset)
        weakref.finalize(block, _dropped, mapping, done, offset).atexit = False
        return memoryview(block).cast("B").toreadonly()

    def close(self) -> None:
        """Close the file; blocks that are still in use stay readable."""
        self._mapping = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Mapping:
    """A read-only mapping, unmapped when the last block in it is dropped.

    Not `mmap.mmap`, which tells the address of writable memory only. A mapping for each block
    would cost 2 ms for 16 MiB instead of 0.04, nearly all of it page faults.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address in (None, _FAILED):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address: int = address
        if hasattr(mmap, "MADV_DONTFORK"):
            _libc.madvise(address, size, mmap.MADV_DONTFORK)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            _libc.munmap(self.address, self._size)


def _dropped(mapping: _Mapping, done: Callable[[int], None], offset: int) -> None:
    """The mapping is an argument so that it lives until now."""
    done(offset)


def _required_seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _SEAL_FUTURE_WRITE
