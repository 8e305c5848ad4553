"""Going on with a stream whose server died: asked again, compared, and continued if the same."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from themis_core.errors import BackendFailed, Overloaded
from themis_core.messages import GenerateEvent, GenerateRequest, ModelInfo
from themis_core.worker.resume import Journal

_PAUSE = 0.2  # Seconds before the first repetition; then ever twice that.


async def resumed(
    attempt: Callable[[GenerateRequest], AsyncGenerator[GenerateEvent, None]],
    back: Callable[[float], Awaitable[None]],
    request: GenerateRequest,
    info: ModelInfo,
    most: int,
) -> AsyncGenerator[GenerateEvent, None]:
    """The events of `attempt(request)`, repeated up to `most` times where it fails.

    `back(pause)` waits so many seconds, and until the server can be asked again. The caller sees
    one answer. Raises `BackendFailed` if it could not be exactly the same one.
    """
    journal = Journal(request, info)
    for count in range(most + 1):
        again = journal.count > 0
        plan = journal.continuation(info, request.timeout)
        try:
            async with aclosing(attempt(plan.request)) as events:
                async for event in events:
                    fresh = plan.pass_on(event) if again else (event,)
                    for new in tuple(fresh):
                        journal.note(new)
                        yield new
            return
        except (BackendFailed, Overloaded):
            if journal.finished:
                yield journal.done()
                return
            if count == most:
                raise
        await back(_PAUSE * 2**count)
