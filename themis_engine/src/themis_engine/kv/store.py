"""Prefixes that had to leave the KV cache: kept in RAM and on disk, and brought back.

A file holds one prefix: a line that names the format, a line of JSON (`fingerprint` of the model,
`salt` as a hash, `count` of tokens, `sha256` of all else), the token ids as little-endian int32,
and the state as the runner gave it. What does not match its hash is deleted and computed
anew; what belongs to another model is left alone. Prefixes with adapters stay in RAM, because an
adapter of the same name can be another one after a restart.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from themis_core.errors import BackendFailed, ThemisError
from themis_engine.kv.manager import PrefixKey
from themis_engine.kv.radix import RadixTree
from themis_engine.runner import ModelRunner, StateRunner

_log = logging.getLogger("themis.engine")

_MAGIC = b"themis-prefix 1\n"
# Computing fewer tokens is about as quick as bringing them back.
_WORTH_STORING = 32
_MOST_WRITES = 16  # Waiting for the disk; more are not written.


@dataclass(slots=True, eq=False)
class Stored:
    """A prefix that can be brought back: its state is in RAM, or in a file, or in both."""

    number: int
    tokens: list[int]
    state: bytes | None
    path: Path | None
    writing: Future[None] | None = None


class PrefixStore:
    """Used by the engine thread. `ram_bytes` and `disk_bytes` bound what is kept.

    A state can only be brought back whole; where the model `truncates`, a longer one is good for
    its beginning too.
    """

    def __init__(
        self,
        fingerprint: str,
        *,
        ram_bytes: int,
        folder: Path | None,
        disk_bytes: int,
        truncates: bool,
    ) -> None:
        self._fingerprint = fingerprint
        self._truncates = truncates
        self._ram_bytes = ram_bytes
        self._disk_bytes = disk_bytes
        self._folder = folder
        self._entries: OrderedDict[int, Stored] = OrderedDict()  # Least recently used first.
        self._tree = RadixTree()
        self._numbers = itertools.count()
        self._in_ram = 0
        self._writer: ThreadPoolExecutor | None = None
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._read_folder(folder)
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="themis-prefixes")

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: PrefixKey, tokens: list[int], *, longer_than: int) -> Stored | None:
        """The stored prefix of `tokens` that spares most, if it is worth bringing back."""
        for depth, members in self._tree.matches(_stored_key(key), tokens[:-1]):
            if depth < longer_than + _WORTH_STORING:
                return None
            entries = [self._entries[number] for number in members]
            fitting = [e for e in entries if self._truncates or len(e.tokens) == depth]
            if fitting:
                entry = min(fitting, key=lambda e: len(e.tokens))
                self._entries.move_to_end(entry.number)
                return entry
        return None

    def restore(self, runner: ModelRunner, slot: int, found: Stored) -> None:
        """Put a stored prefix into an empty sequence. Raises `BackendFailed` if it is damaged."""
        assert isinstance(runner, StateRunner)
        try:
            state = found.state if found.state is not None else _read(found.path)
            runner.restore(slot, state, len(found.tokens))
        except BackendFailed:
            self._discard(found)
            raise

    def save(self, runner: ModelRunner, slot: int, key: PrefixKey, tokens: tuple[int, ...]) -> None:
        """Keep what a sequence holds, before it is freed."""
        assert isinstance(runner, StateRunner)
        held, stored_key = list(tokens), _stored_key(key)
        if len(held) < _WORTH_STORING or self._has(stored_key, held):
            return
        try:
            state = runner.save(slot)
        except ThemisError as error:
            _log.warning("A prefix of %d tokens cannot be kept: %s", len(held), error)
            return
        if not state:  # The runner holds less than the whole of it (a sliding window).
            return
        entry = Stored(next(self._numbers), held, state, None)
        self._add(entry, stored_key)
        # A file outlives the adapters that are loaded now; another may come under the same name.
        if self._writer is not None and self._folder is not None and not key.adapters:
            writing = sum(
                not (e.writing is None or e.writing.done()) for e in self._entries.values()
            )
            if writing >= _MOST_WRITES:
                _log.warning("%s is too slow: a prefix is not written.", self._folder)
            else:
                entry.writing = self._writer.submit(self._write, self._folder, entry, stored_key)
        self._trim()

    def forget(self, applies: Callable[[PrefixKey], bool]) -> None:
        """Give up the prefixes whose key is such."""
        for entry in list(self._entries.values()):
            key = self._tree.key_of(entry.number)
            if isinstance(key, PrefixKey) and applies(key):
                self._discard(entry)

    def close(self) -> None:
        """Wait until everything is written."""
        if self._writer is not None:
            self._writer.shutdown()

    # --- RAM -------------------------------------------------------------------------------------

    def _has(self, key: PrefixKey, tokens: list[int]) -> bool:
        """True if these tokens, or more that are as good, are stored."""
        return any(
            depth == len(tokens)
            and (self._truncates or any(len(self._entries[m].tokens) == depth for m in members))
            for depth, members in self._tree.matches(key, tokens)
        )

    def _add(self, entry: Stored, key: PrefixKey) -> None:
        self._entries[entry.number] = entry
        self._tree.insert(key, entry.tokens, entry.number)
        self._in_ram += len(entry.state or b"")

    def _discard(self, entry: Stored) -> None:
        if self._entries.pop(entry.number, None) is not None:
            self._tree.remove(entry.number)
            self._in_ram -= len(entry.state or b"")

    def _trim(self) -> None:
        for entry in list(self._entries.values()):
            if self._in_ram <= self._ram_bytes:
                return
            if entry.state is None or not (entry.writing is None or entry.writing.done()):
                continue  # Out of RAM already, or still on its way to the disk.
            if entry.path is None:
                self._discard(entry)
            else:
                self._in_ram -= len(entry.state)
                entry.state = None

    # --- disk ------------------------------------------------------------------------------------

    def _write(self, folder: Path, entry: Stored, key: PrefixKey) -> None:
        """On the writer's thread."""
        assert entry.state is not None
        body = np.array(entry.tokens, "<i4").tobytes() + entry.state
        head = _Head(self._fingerprint, str(key.salt[0]), len(entry.tokens), "")
        head = msgspec.structs.replace(head, sha256=_digest(head, body))
        try:
            # Mode 0600, and under its final name whole or not at all.
            handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_MAGIC + msgspec.json.encode(head) + b"\n" + body)
                entry.path = Path(name).rename(folder / f"{head.sha256}.prefix")
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            self._trim_folder(folder)
        except OSError as error:
            _log.warning("A prefix could not be written to %s: %s", folder, error)

    def _trim_folder(self, folder: Path) -> None:
        files = [(path.stat(), path) for path in folder.glob("*.prefix")]
        size = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if size <= self._disk_bytes:
                return
            path.unlink(missing_ok=True)
            size -= stat.st_size

    def _read_folder(self, folder: Path) -> None:
        for path in sorted(folder.glob("*.prefix")):
            try:
                with path.open("rb") as file:
                    head = _head(file.readline(64), file.readline(65536))
                    tokens = np.frombuffer(file.read(4 * head.count), "<i4").tolist()
            except (OSError, ValueError) as error:
                _log.warning("%s is no stored prefix: %s", path, error)
                continue
            if head.fingerprint == self._fingerprint and len(tokens) == head.count:
                entry = Stored(next(self._numbers), tokens, None, path)
                self._add(entry, PrefixKey((), (head.salt,)))


class _Head(msgspec.Struct, frozen=True):
    fingerprint: str
    salt: str
    count: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    sha256: str


def _stored_key(key: PrefixKey) -> PrefixKey:
    """The key as files have it: nothing of a tenant's name is written down."""
    text = json.dumps(key.salt)
    return PrefixKey(key.adapters, (hashlib.sha256(text.encode()).hexdigest(),))


def _digest(head: _Head, body: bytes) -> str:
    """The hash of all but itself."""
    rest = msgspec.json.encode(msgspec.structs.replace(head, sha256=""))
    return hashlib.sha256(rest + body).hexdigest()


def _head(magic: bytes, line: bytes) -> _Head:
    """Raises `ValueError` (of which msgspec's errors are) for anything else."""
    if magic != _MAGIC:
        raise ValueError("it does not begin as one")
    return msgspec.json.decode(line, type=_Head)


def _read(path: Path | None) -> bytes:
    """The state in a file. Raises `BackendFailed`, and deletes what is damaged."""
    assert path is not None
    try:
        magic, line, body = path.read_bytes().split(b"\n", 2)
        head = _head(magic + b"\n", line)
        if _digest(head, body) != head.sha256:
            raise ValueError("its content does not match its hash")
    except (OSError, ValueError) as error:
        with suppress(OSError):
            path.unlink()
        raise BackendFailed(f"The stored prefix {path.name} is lost: {error}.") from error
    # What is used stays longest.
    with suppress(OSError):
        os.utime(path)
    return body[4 * head.count :]
