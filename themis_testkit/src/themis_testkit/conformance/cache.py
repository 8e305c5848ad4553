"""All checks of the `Cache` contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import given

from themis_core.contracts import Cache
from themis_testkit.conformance.kit import KitBase, assert_closes_clean, cancelled_after, on
from themis_testkit.strategies import cache_operations

CacheFactory = Callable[[], Cache]

# Keys that a careless cache takes for one another.
_KEYS = (
    b"",
    b"\0",
    b"k",
    b"K",
    b"k\0",
    b"k\0k",
    b" k",
    b"k ",
    b"k\n",
    b"kk",
    b"\xff",
    b"\xff\xfe",
    "é".encode(),
    "e\u0301".encode(),
    b"k" * 300,
    b"k" * 301,
    bytes(range(256)),
)


class CacheConformance(KitBase):
    """Subclass it, and give it the fixture `cache_factory`."""

    big_value: ClassVar[int] = 1 << 20
    """The bytes of a big value."""

    loses_everything: ClassVar[bool] = False
    """True for a cache that keeps nothing at all, which the contract allows."""

    @pytest.fixture
    def cache_factory(self) -> CacheFactory:
        """A function that gives a new, empty cache at each call."""
        raise NotImplementedError("a conformance suite needs the fixture cache_factory")

    @on("cache_factory")
    async def test_an_unknown_key_has_no_value(self, cache: Cache) -> None:
        """`get`: "or None"."""
        for key in _KEYS:
            assert await cache.get(key) is None

    @on("cache_factory")
    async def test_it_keeps_something(self, cache: Cache) -> None:
        """Losing is allowed, but who loses everything is no cache, unless it says so."""
        if self.loses_everything:
            pytest.skip("loses_everything is declared")
        for i in range(8):
            await cache.put(b"key %d" % i, b"value %d" % i)
        found = [await cache.get(b"key %d" % i) for i in range(8)]
        assert any(value is not None for value in found)

    @on("cache_factory")
    async def test_keys_are_exact(self, cache: Cache) -> None:
        """`get`: "exactly this key": case, length, zeros and spaces count."""
        for i, key in enumerate(_KEYS):
            await cache.put(key, b"value %d" % i)
        for i, key in enumerate(_KEYS):
            assert await cache.get(key) in (None, b"value %d" % i), key
        for key in (b"k\0k\0", b"KK", b"  k", b"k" * 302, bytes(range(255))):
            assert await cache.get(key) is None, key

    @on("cache_factory")
    async def test_many_keys_do_not_collide(self, cache: Cache) -> None:
        """ "returning a wrong one never is" allowed: not among thousands of keys either."""
        keys = [b"%d" % i for i in range(2000)]
        for key in keys:
            await cache.put(key, b"of " + key)
        for key in keys:
            assert await cache.get(key) in (None, b"of " + key)

    @on("cache_factory")
    async def test_values_come_back_whole(self, cache: Cache) -> None:
        """Bytes are bytes: empty, with zeros, with line ends, big."""
        values = [b"", b"\0", b"a\0b", b" a ", b"a\r\n", bytes(range(256)), b"\xff" * 70000]
        values.append(b"0123456789abcdef" * (self.big_value // 16))
        for i, value in enumerate(values):
            await cache.put(b"key %d" % i, value)
            found = await cache.get(b"key %d" % i)
            assert found is None or (isinstance(found, bytes) and found == value)

    @on("cache_factory")
    async def test_the_last_value_counts(self, cache: Cache) -> None:
        """`put` replaces: the value before is a wrong one now."""
        for value in (b"first", b"second and longer", b"", b"4th"):
            await cache.put(b"key", value)
            assert await cache.get(b"key") in (None, value)

    def test_any_history(self, cache_factory: CacheFactory) -> None:
        """Whatever is put and got in whatever order: the last value, or none."""

        @self.settings(self.examples)
        @given(cache_operations())
        def play(operations: list[tuple[bytes, bytes | None]]) -> None:
            asyncio.run(history(operations))

        async def history(operations: list[tuple[bytes, bytes | None]]) -> None:
            cache = self.make(cache_factory)
            stored: dict[bytes, bytes] = {}
            try:
                for key, value in operations:
                    if value is None:
                        assert await cache.get(key) in (None, stored.get(key))
                    else:
                        await cache.put(key, value)
                        stored[key] = value
            finally:
                await cache.aclose()

        play()

    @on("cache_factory")
    async def test_a_cancelled_put_is_whole_or_nothing(self, cache: Cache) -> None:
        """`put`: "If it is cancelled …, the key has the old value, or none."."""
        old, new = b"old" * 1000, b"new!" * 1000
        for turns in range(self.cancel_steps):
            key = b"key %d" % turns
            await cache.put(key, old)
            task = asyncio.ensure_future(cache.put(key, new))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            allowed = (None, old) if task.cancelled() else (None, new)
            for _ in range(3):  # What goes on behind the caller's back is found out too.
                assert await cache.get(key) in allowed, f"cancelled after {turns} turns"
                await asyncio.sleep(0)

    @on("cache_factory")
    async def test_a_cancelled_get_leaves_no_trace(self, cache: Cache) -> None:
        """`get`: "Cancelling leaves no trace": nobody else's call fails, waits, or lies."""
        await cache.put(b"key", b"value")
        for turns in range(self.cancel_steps):
            other = asyncio.ensure_future(cache.get(b"key"))
            await cancelled_after(turns, cache.get(b"key"))
            assert await other in (None, b"value")
            await cache.put(b"key", b"value")
            assert await cache.get(b"key") in (None, b"value")

    @on("cache_factory")
    async def test_concurrent_use(self, cache: Cache) -> None:
        """Many at once: each gets what was stored under its key, by one of them, whole."""

        async def use(worker: int) -> None:
            for turn in range(12):
                key = b"key %d" % ((worker + turn) % 5)
                await cache.put(key, key + b" = " + b"%d" % worker * 50)
                found = await cache.get(key)
                allowed = [key + b" = " + b"%d" % w * 50 for w in range(8)]
                assert found is None or found in allowed

        await asyncio.gather(*(use(worker) for worker in range(8)))

    def test_closing(self, cache_factory: CacheFactory) -> None:
        """`aclose`: "Release everything. Closing twice is fine."."""

        async def work(cache: Cache) -> None:
            await cache.put(b"key", b"value")
            await cache.get(b"key")

        async def main() -> None:
            async with asyncio.timeout(self.deadline):
                await assert_closes_clean(lambda: self.make(cache_factory), work)

        asyncio.run(main())
