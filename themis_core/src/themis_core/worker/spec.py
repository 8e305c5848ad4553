"""What a supervisor and its worker say to each other before the worker serves."""

from __future__ import annotations

from typing import Any

import msgspec

from themis_core.protocol.failures import Failure


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker hosts: a backend plugin with its settings as plain data, and where.

    `lock` is the lock file that its plugins must be as. The settings may have secrets in them, so
    `repr` does not tell them.
    """

    model: str
    backend: str
    settings: dict[str, Any]
    transport: str
    url: str = ""
    lock: str | None = None

    def __repr__(self) -> str:
        return f"Spec(model={self.model!r}, backend={self.backend!r}, url={self.url!r})"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its parent: that it serves, or why not."""

    url: str = ""
    failure: Failure | None = None
