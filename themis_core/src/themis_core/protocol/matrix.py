"""`Matrix`: the vectors of many inputs in one piece of memory, and where that memory comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, overload

Format = Literal["f", "d"]
ITEM_SIZE: dict[str, int] = {"f": 4, "d": 8}


class Allocation(NamedTuple):
    """Writable memory, and the object that owns it."""

    memory: memoryview
    owner: object


Allocator = Callable[[int], Allocation | None]

_allocator: ContextVar[Allocator | None] = ContextVar("themis_matrix_allocator", default=None)


@contextmanager
def allocating(allocator: Allocator) -> Iterator[None]:
    """Within it, `Matrix.empty` takes memory from `allocator`, as long as that gives any."""
    token = _allocator.set(allocator)
    try:
        yield
    finally:
        _allocator.reset(token)


class Matrix(Sequence[tuple[float, ...]]):
    """Rows of equal length, readable as tuples of floats, or all at once without copying.

    `numpy.asarray(matrix)` shares its memory. It can stand wherever a contract asks for a
    sequence of vectors; two are equal if their rows are. `item` is `f` (float32) or `d` (float64).
    """

    def __init__(
        self, memory: memoryview, columns: int, item: Format = "f", owner: object = None
    ) -> None:
        self.memory = memory.cast("B")
        self.columns = columns
        self.item: Format = item
        self.owner = owner
        self._rows = self.memory.nbytes // (columns * ITEM_SIZE[item]) if columns else 0
        if self._rows * columns * ITEM_SIZE[item] != self.memory.nbytes:
            raise ValueError(f"{self.memory.nbytes} bytes are no rows of {columns} {item!r}")

    @classmethod
    def empty(cls, rows: int, columns: int) -> Matrix:
        """A float32 matrix to be written through `numpy.asarray` before it is returned.

        Where a transport carries the answer, the memory is what the other end will read: nothing
        is copied. It must not be written any more once it has been returned.
        """
        length = rows * columns * ITEM_SIZE["f"]
        allocator = _allocator.get()
        found = allocator(length) if allocator is not None and length else None
        if found is None:
            return cls(memoryview(bytearray(length)), columns)
        return cls(found.memory[:length], columns, owner=found.owner)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """How numpy sees the memory (its array interface protocol, version 3)."""
        return {
            "version": 3,
            "shape": (self._rows, self.columns),
            "typestr": f"<f{ITEM_SIZE[self.item]}",
            "data": self.memory,
        }

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> tuple[float, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[float, ...]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._rows)))
        if not -self._rows <= index < self._rows:
            raise IndexError(index)
        start = index % self._rows * self.columns
        return tuple(self.memory.cast(self.item)[start : start + self.columns])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == tuple(theirs) for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # As of any mutable sequence.

    def __repr__(self) -> str:
        return f"Matrix({self._rows}x{self.columns} {self.item!r})"
