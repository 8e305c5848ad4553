"""What an examination found: the lines of `themis doctor`, of the core and of plugins."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Level = Literal["ok", "note", "warning", "error"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    An `error` keeps Themis from working as configured, a `warning` may; a `note` says what could
    not be found out. `data` has the same facts for programs, in what JSON can carry.
    """

    level: Level
    subject: str
    message: str
    remedy: str | None = None
    data: dict[str, Any] = {}
