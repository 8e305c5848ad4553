"""`LruCache`, with one fault each."""

from __future__ import annotations

import asyncio
import os
import zlib

from themis_testkit import LruCache


class PrefixKeys(LruCache):
    """get finds the value of a key that begins like the one asked for"""

    async def get(self, key: bytes) -> bytes | None:
        near = [k for k in self._entries if key and k.startswith(key)]
        return await super().get(near[0] if near else key)


class CaseBlind(LruCache):
    """keys are compared without regard to case"""

    async def get(self, key: bytes) -> bytes | None:
        return await super().get(key.lower())

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key.lower(), value)


class EndsAtZero(LruCache):
    """a key ends at its first zero byte"""

    async def get(self, key: bytes) -> bytes | None:
        return await super().get(key.split(b"\0")[0])

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key.split(b"\0")[0], value)


class ShortHash(LruCache):
    """keys are told apart by a checksum of 16 bits"""

    async def get(self, key: bytes) -> bytes | None:
        return await super().get((zlib.crc32(key) & 0xFFFF).to_bytes(2, "big"))

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put((zlib.crc32(key) & 0xFFFF).to_bytes(2, "big"), value)


class LongKeysCut(LruCache):
    """keys are cut after 255 bytes"""

    async def get(self, key: bytes) -> bytes | None:
        return await super().get(key[:255])

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key[:255], value)


class BigValuesCut(LruCache):
    """values are cut after 64 KiB"""

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key, value[: 1 << 16])


class Strips(LruCache):
    """white space at the ends of a value is lost"""

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key, value.strip())


class FirstWins(LruCache):
    """a key that has a value keeps it"""

    async def put(self, key: bytes, value: bytes) -> None:
        if key not in self._entries:
            await super().put(key, value)


class GivesViews(LruCache):
    """get returns a memoryview"""

    async def get(self, key: bytes) -> bytes | None:
        value = await super().get(key)
        return None if value is None else memoryview(value)  # type: ignore[return-value]


class HalfPut(LruCache):
    """put writes in two halves; cancelled, the first half stays"""

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key, value[: len(value) // 2])
        await asyncio.sleep(0)
        await super().put(key, value)


class PutGoesOn(LruCache):
    """put writes in a task of its own, which goes on when put is cancelled"""

    async def put(self, key: bytes, value: bytes) -> None:
        async def write() -> None:
            await asyncio.sleep(0)
            await LruCache.put(self, key, value)

        await asyncio.shield(asyncio.create_task(write()))


class SharedBuffer(LruCache):
    """two gets at once overwrite each other's key"""

    async def get(self, key: bytes) -> bytes | None:
        self.wanted = key
        await asyncio.sleep(0)
        return await super().get(self.wanted)


class LockStays(LruCache):
    """a cancelled get keeps the lock"""

    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()

    async def get(self, key: bytes) -> bytes | None:
        await self.lock.acquire()
        await asyncio.sleep(0)
        value = await super().get(key)
        self.lock.release()
        return value


class KeepsNothing(LruCache):
    """put stores nothing, ever"""

    async def put(self, key: bytes, value: bytes) -> None:
        return None


class NeverMisses(LruCache):
    """an unknown key has the empty value"""

    async def get(self, key: bytes) -> bytes | None:
        return await super().get(key) or b""


class ClosesOnce(LruCache):
    """closing twice raises"""

    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise RuntimeError("it is closed")
        self.closed = True


class LeavesFile(LruCache):
    """a file outlives aclose"""

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key, value)
        self.file = os.open(__file__, os.O_RDONLY)


class ReadsTwice(LruCache):
    """get looks for the key, waits, and raises TypeError if the entry went meanwhile"""

    async def get(self, key: bytes) -> bytes | None:
        if key not in self._entries:
            return None
        await asyncio.sleep(0)
        return bytes(await super().get(key))  # type: ignore[arg-type]


class NeverEvicts(LruCache):
    """the capacity is ignored"""

    def __init__(self) -> None:
        super().__init__(1 << 40)


class LeavesTask(LruCache):
    """a sweeper task outlives aclose"""

    async def put(self, key: bytes, value: bytes) -> None:
        await super().put(key, value)
        self.sweeper = asyncio.create_task(asyncio.sleep(3600))


MUTANTS = (
    PrefixKeys,
    CaseBlind,
    EndsAtZero,
    ShortHash,
    LongKeysCut,
    BigValuesCut,
    Strips,
    FirstWins,
    GivesViews,
    HalfPut,
    PutGoesOn,
    SharedBuffer,
    LockStays,
    KeepsNothing,
    NeverMisses,
    ClosesOnce,
    LeavesFile,
    ReadsTwice,
    NeverEvicts,
    LeavesTask,
)
