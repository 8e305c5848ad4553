"""A response cache: finished answers by key."""

from __future__ import annotations

from typing import Protocol


class Cache(Protocol):
    """Bytes by key. Losing an entry at any time is allowed; returning a wrong one never is.

    `get` and `put` have a `Budget` each: a call that takes longer is cancelled.
    """

    async def get(self, key: bytes) -> bytes | None:
        """The value stored under exactly this key, or None. Cancelling leaves no trace."""
        ...

    async def put(self, key: bytes, value: bytes) -> None:
        """Store a value. If it is cancelled or raises, the key has the old value, or none."""
        ...

    async def aclose(self) -> None:
        """Release everything. Closing twice is fine."""
        ...
