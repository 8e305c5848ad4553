"""`LruCache`: an in-memory response cache with a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict


class LruCache:
    """Keeps what was used last, up to `capacity` bytes of keys and values together.

    A value that does not fit by itself is not kept, and what its key had before is lost, since it
    is no longer right. Each call is done without waiting, so cancelling finds nothing half done.
    """

    def __init__(self, capacity: int = 64 << 20) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity!r}, but must be at least 1 byte")
        self._capacity = capacity
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes of the keys and values that are kept."""
        return self._used

    async def get(self, key: bytes) -> bytes | None:
        """The value of exactly this key, which is the newest now; or None."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        """Store a value; the oldest entries make room for it."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._used -= len(key) + len(old)
        size = len(key) + len(value)
        if size > self._capacity:
            return
        # Copies: the caller may own a buffer that changes later.
        self._entries[bytes(key)] = bytes(value)
        self._used += size
        while self._used > self._capacity:
            oldest, lost = self._entries.popitem(last=False)
            self._used -= len(oldest) + len(lost)

    async def aclose(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._used = 0
