"""Running the core requests of one HTTP request: one, or one for each of several prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from themis_core.messages import (
    Completion,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Usage,
)
from themis_openai_server.chunks import Chunks
from themis_openai_server.convert import Job
from themis_openai_server.exchange import Exchange
from themis_openai_server.ports import RuntimePort
from themis_openai_server.ready import Ready
from themis_openai_server.reply import add_usage

_QUEUE = 64


async def complete(runtime: RuntimePort, job: Job) -> list[Completion]:
    """All answers, in the order of the prompts. If one fails or this is cancelled, all stop."""
    if len(job.requests) == 1:
        return [await runtime.complete(job.requests[0])]
    tasks = [asyncio.create_task(runtime.complete(request)) for request in job.requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _stop(tasks)


async def stream(exchange: Exchange, runtime: RuntimePort, job: Job, chunks: Chunks) -> None:
    """Send the events as they come; those that are ready together go out in one write.

    An error before the first token is raised before anything was sent.
    """
    reader = Ready(events_of(runtime, job), last=Done)
    try:
        batch = await _first_batch(reader)
        if batch:
            await exchange.start_stream()
        body = chunks.opening()
        while batch:
            body += b"".join(map(chunks.encode, batch))
            if isinstance(batch[-1], Done):
                await exchange.send(body, last=True)
                return
            if body:
                await exchange.send(body, last=False)
                body = b""
            batch = await reader.batch()
    finally:
        await reader.aclose()
    raise RuntimeError("a backend's events ended without Done")


async def _first_batch(reader: Ready[GenerateEvent]) -> list[GenerateEvent]:
    """The first batch with more in it than `Started`, which does not yet prove any success."""
    batch = await reader.batch()
    while batch and not isinstance(batch[-1], Delta | Finished | Done):
        batch = await reader.batch()
    return batch


def events_of(runtime: RuntimePort, job: Job) -> AsyncGenerator[GenerateEvent, None]:
    """The events of all prompts, interleaved; choices are numbered through, usage is summed."""
    if len(job.requests) == 1:
        return runtime.generate(job.requests[0])
    return _merged(runtime, job)


async def _merged(runtime: RuntimePort, job: Job) -> AsyncGenerator[GenerateEvent, None]:
    queue: asyncio.Queue[GenerateEvent | Exception] = asyncio.Queue(_QUEUE)
    tasks = [
        asyncio.create_task(_pump(runtime, request, number * job.choices_per_request, queue))
        for number, request in enumerate(job.requests)
    ]
    usages: list[Usage] = []
    try:
        while len(usages) < len(tasks):
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Done):
                usages.append(event.usage)
            else:
                yield event
        yield Done(usage=add_usage(usages))
    finally:
        await _stop(tasks)


async def _pump(
    runtime: RuntimePort,
    request: GenerateRequest,
    offset: int,
    queue: asyncio.Queue[GenerateEvent | Exception],
) -> None:
    try:
        async with aclosing(runtime.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta | Finished):
                    event = msgspec.structs.replace(event, index=offset + event.index)
                await queue.put(event)
    # Not handled here but handed over: whoever reads the queue raises it.
    except Exception as error:  # noqa: BLE001
        await queue.put(error)


async def _stop(tasks: list[asyncio.Task[Completion]] | list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
