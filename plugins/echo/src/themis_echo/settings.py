"""What `backend = "echo"` can be told."""

from __future__ import annotations

from typing import Annotated

import msgspec


class EchoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `backend = "echo"`."""

    prefix: Annotated[str, msgspec.Meta(description="Text that every answer begins with.")] = ""
    delay: Annotated[
        float, msgspec.Meta(ge=0, description="Seconds to wait before each word, as a model would.")
    ] = 0.0
    context: Annotated[
        int, msgspec.Meta(ge=1, description="Most tokens of a prompt and its answer together.")
    ] = 4096
