"""What a plugin may leave behind: tasks, threads, child processes, file descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any, NamedTuple

_TURNS = 5


class Traces(NamedTuple):
    """What there is at one moment."""

    threads: set[threading.Thread]
    processes: set[str]
    files: list[str]


def traces() -> Traces:
    """What there is now."""
    return Traces(own_threads(), child_processes(), open_files())


def assert_nothing_new(before: Traces) -> None:
    """No thread, no child process, and not more file descriptors than before."""
    now = traces()
    assert not now.threads - before.threads, "a thread is left"
    assert not now.processes - before.processes, "a child process is left"
    assert len(now.files) <= len(before.files), f"of these files, one is left: {now.files}"


async def assert_nothing_left(before: Traces, tasks: set[asyncio.Task[Any]]) -> None:
    """The same on an event loop, and no task but `tasks`.

    A task that has its result may take some turns of the loop to end, so that a library's own
    wrapper of it does.
    """
    for _ in range(_TURNS):
        if asyncio.all_tasks() <= tasks:
            break
        await asyncio.sleep(0)
    assert not asyncio.all_tasks() - tasks, "a task is left"
    await assert_all_closed(before)


async def assert_all_closed(before: Traces) -> None:
    """`assert_nothing_new`, but a file descriptor may take a moment.

    asyncio and gRPC close sockets behind their callers.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            # There is nothing to wait for but the number itself.
            while len(open_files()) > len(before.files):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    assert_nothing_new(before)


def own_threads() -> set[threading.Thread]:
    """All threads but those of asyncio's own executor, which ends with its event loop."""
    return {t for t in threading.enumerate() if not t.name.startswith("asyncio_")}


def child_processes() -> set[str]:
    """Ids of child processes, where the system tells them (Linux)."""
    lists = Path("/proc/self/task").glob("*/children")
    return {child for file in lists for child in _read(file).split()}


def open_files() -> list[str]:
    """What the file descriptors point to, where the system tells it (Linux)."""
    names = []
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # The one that lists the directory is closed by now.
            names.append(str(link.readlink()))
    return sorted(names)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # The thread ended meanwhile.
        return ""
