"""llama.cpp's log: the only place where it says why something failed.

`capture()` collects the warnings and errors that llama.cpp writes in the calling thread. Errors
that nobody captures, or whose capture ends well, go to the Python logger `themis.llamacpp`.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections import deque
from types import TracebackType
from typing import Any

logger = logging.getLogger("themis.llamacpp")

_WARNING, _ERROR, _CONTINUED = 2, 3, 5
_KEPT = 32
_FUNCTION_NAME = re.compile(r"^\s*[\w:~]+\s*: ")

_lock = threading.Lock()
_installed: list[Any] = []  # The callback, which C calls and Python must keep alive.
_captures: dict[int, list[Capture]] = {}  # By thread, innermost last.
_unfinished: dict[int, tuple[int, str]] = {}  # By thread: level and text of a line so far.


class Capture:
    """Context manager: warnings and errors of the calling thread, the last 32 of them."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_KEPT)

    def __enter__(self) -> Capture:
        _captures.setdefault(threading.get_ident(), []).append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        thread = threading.get_ident()
        stack = _captures[thread]
        stack.remove(self)
        if not stack:
            del _captures[thread]
        if error is None:  # Otherwise the error carries them.
            for text in self.errors:
                logger.error("%s", text)

    @property
    def errors(self) -> list[str]:
        """Error lines, oldest first, without repetitions and names of C functions."""
        return self._texts(_ERROR)

    @property
    def warnings(self) -> list[str]:
        """Warning lines, in the same way."""
        return self._texts(_WARNING)

    def reason(self) -> str:
        """What llama.cpp gave as its reason, as one line ending in a full stop."""
        texts = self.errors or self.warnings or ["llama.cpp gave no reason"]
        return "; ".join(text.rstrip(".") for text in texts[:4]) + "."

    def add(self, level: int, text: str) -> None:
        """Note one line."""
        self._lines.append((level, text))

    def _texts(self, level: int) -> list[str]:
        return list(dict.fromkeys(text for found, text in self._lines if found == level))


def install(api: Any) -> None:
    """Send llama.cpp's log here instead of to stderr. Twice is fine."""
    with _lock:
        if not _installed:
            _installed.append(api.llama_log_callback(_on_log))
        # Each time, because other users of llama_cpp in this process may have set their own.
        api.llama_log_set(_installed[0], ctypes.c_void_p(0))


def _on_log(level: int, text: bytes | None, _data: object) -> None:
    try:
        _take(level, (text or b"").decode("utf-8", "replace"))
    except Exception:  # noqa: BLE001, S110 - C cannot receive an exception, nor can a log report one.
        pass


def _take(level: int, text: str) -> None:
    """Put pieces together to lines; llama.cpp marks the later pieces of a line as continued."""
    thread = threading.get_ident()
    first, so_far = _unfinished.pop(thread, (level, ""))
    if level != _CONTINUED:
        if so_far:
            _finish(thread, first, so_far)
        first, so_far = level, ""
    so_far += text
    if so_far.endswith("\n"):
        _finish(thread, first, so_far)
    elif first in (_WARNING, _ERROR):  # Progress dots of a long load are not kept.
        _unfinished[thread] = (first, so_far)


def _finish(thread: int, level: int, text: str) -> None:
    if level not in (_WARNING, _ERROR):
        return
    line = " ".join(_FUNCTION_NAME.sub("", text).split())
    stack = _captures.get(thread)
    if not line:
        return
    if stack:
        stack[-1].add(level, line)
    elif level == _ERROR:
        logger.error("%s", line)
