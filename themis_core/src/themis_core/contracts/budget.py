"""The budget of a hook: how long a call may take, and what its failure means."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

OnFailure = Literal["closed", "open"]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """For each call of one cache, quota or validator.

    A refusal is an answer and no failure: `open` never lets through what a validator or a quota
    has refused.
    """

    timeout: Annotated[
        float,
        msgspec.Meta(gt=0, description="Seconds that each call may take, before it is cancelled."),
    ] = 5.0
    on_failure: Annotated[
        OnFailure,
        msgspec.Meta(
            description="What happens if a call takes too long or fails: closed ends the request "
            "with an error, open goes on without it."
        ),
    ] = "closed"


# A cache that does not answer is a miss, and no reason to refuse a request.
CACHE_BUDGET = Budget(timeout=1.0, on_failure="open")
