"""The runner of `mutants_runner.py`, with one fault each in what its sequences hold."""

from __future__ import annotations

import dataclasses

from themis_core.errors import BackendFailed
from themis_engine import Batch, Logits

from .mutants_runner import Plain


class IgnoresTruncate(Plain):
    """truncate says True and does nothing"""

    def truncate(self, sequence: int, length: int) -> bool:
        return True


class CutsOneMore(Plain):
    """truncate keeps one token less"""

    def truncate(self, sequence: int, length: int) -> bool:
        return super().truncate(sequence, max(0, length - 1))


class CutsAtEnd(Plain):
    """truncate to the present length empties the sequence"""

    def truncate(self, sequence: int, length: int) -> bool:
        return super().truncate(sequence, length if length < len(self.kv[sequence]) else 0)


class CannotTruncate(Plain):
    """truncate says False, though truncates is declared"""

    def truncate(self, sequence: int, length: int) -> bool:
        return False


class CutsAndDenies(Plain):
    """without truncates: truncate says False, and has cut nevertheless"""

    def __init__(self) -> None:
        super().__init__()
        self.info = dataclasses.replace(self.info, truncates=False)

    def truncate(self, sequence: int, length: int) -> bool:
        super().truncate(sequence, length)
        return False


class CopyIsAlias(Plain):
    """a copy of a whole sequence is the same sequence"""

    def copy(self, source: int, target: int, length: int) -> None:
        self.kv[target] = self.kv[source]


class CopiesAll(Plain):
    """copy ignores the length"""

    def copy(self, source: int, target: int, length: int) -> None:
        self.kv[target] = list(self.kv[source])


class CopyMoves(Plain):
    """copy empties the source"""

    def copy(self, source: int, target: int, length: int) -> None:
        super().copy(source, target, length)
        self.kv[source] = []


class FreeDoesNothing(Plain):
    """free keeps the content"""

    def free(self, sequence: int) -> None:
        return None


class FreesAll(Plain):
    """free empties every sequence"""

    def free(self, sequence: int) -> None:
        for each in self.kv:
            self.kv[each] = []


class FreeTwice(Plain):
    """freeing an empty sequence raises"""

    def free(self, sequence: int) -> None:
        if not self.kv[sequence]:
            raise BackendFailed("it is empty")
        super().free(sequence)


class Leaks(Plain):
    """what is freed is not used again"""

    leaked = 0

    def free(self, sequence: int) -> None:
        self.leaked += len(self.kv[sequence])
        super().free(sequence)

    def histories(self, batch: Batch) -> list[list[int]]:
        if self.leaked > self.info.kv_capacity:
            raise BackendFailed("the KV cache is full")
        return super().histories(batch)


class FullIsTheEnd(Plain):
    """once the KV cache was full, every forward raises"""

    full = False

    def histories(self, batch: Batch) -> list[list[int]]:
        try:
            if self.full:
                raise BackendFailed("the KV cache was full")
            return super().histories(batch)
        except BackendFailed:
            self.full = True
            raise


class FullIsMemoryError(Plain):
    """a full KV cache is a MemoryError"""

    def histories(self, batch: Batch) -> list[list[int]]:
        try:
            return super().histories(batch)
        except BackendFailed as error:
            raise MemoryError from error


class FewerSequences(Plain):
    """one sequence id less than declared can be used"""

    def __init__(self) -> None:
        super().__init__()
        del self.kv[3]


class SavesLess(Plain):
    """a saved state lacks the last bits"""

    def restore(self, sequence: int, state: bytes, length: int) -> None:
        super().restore(sequence, state, length)
        self.kv[sequence][0] ^= 1


class TrustsStates(Plain):
    """restore takes what is no state"""

    def restore(self, sequence: int, state: bytes, length: int) -> None:
        try:
            super().restore(sequence, state, length)
        except BackendFailed:
            self.kv[sequence] = [1] * length


class StatesByRow(Plain):
    """hidden states of the last position only"""

    def hidden_states(self, batch: Batch) -> Logits:
        return super().hidden_states(batch)[-1:]


MUTANTS = tuple(
    kind for kind in list(globals().values()) if isinstance(kind, type) and Plain in kind.__bases__
)
