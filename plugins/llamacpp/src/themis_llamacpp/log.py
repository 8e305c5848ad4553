"""llama.cpp says why it fails only in its log: keep the last lines of each thread for errors."""

from __future__ import annotations

import collections
import ctypes
import logging
import threading

_LEVELS = {3: logging.WARNING, 4: logging.ERROR}  # ggml_log_level
_CONTINUED = 5
_KEPT = 12

_log = logging.getLogger("themis.llamacpp")
_recent: dict[int, collections.deque[str]] = {}


def receive(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """The callback for llama.cpp. Called in whatever thread logs; must never raise."""
    try:
        line = text.decode("utf-8", "replace").rstrip("\n")
        kept = _recent.setdefault(threading.get_ident(), collections.deque(maxlen=_KEPT))
        if level == _CONTINUED and kept:
            kept[-1] += line
        elif level in _LEVELS and line.strip(" ."):
            kept.append(line)
            # Errors come back in exceptions, so that the log needs them for diagnosis only.
            _log.debug("%s", line)
    # An exception could not leave this C callback; it would be printed and lost.
    except Exception:  # noqa: BLE001, S110
        pass


def clear() -> None:
    """Forget what this thread has logged."""
    _recent.pop(threading.get_ident(), None)


def reason() -> str:
    """What this thread has logged at warning level or above since `clear`, as one line."""
    lines = _recent.pop(threading.get_ident(), ())
    unique = dict.fromkeys(line.strip() for line in lines)
    return "; ".join(unique) or "llama.cpp gave no reason"
