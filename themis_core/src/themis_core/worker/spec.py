"""What a supervisor and its worker say to each other before the worker serves."""

from __future__ import annotations

from typing import Any

import msgspec

from themis_core.protocol.failures import Failure


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker hosts: a backend plugin with its settings as plain data, and where."""

    model: str
    backend: str
    settings: dict[str, Any]
    transport: str
    url: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its parent: that it serves, or why not."""

    url: str = ""
    failure: Failure | None = None
