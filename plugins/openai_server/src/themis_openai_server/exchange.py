"""One HTTP request and its response, over the raw ASGI calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from themis_openai_server.errors import Header, HttpError, Problem

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_STREAM: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would otherwise collect the stream before it passes it on.
    (b"x-accel-buffering", b"no"),
)
STREAM_END = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class Exchange:
    """Reads the body, watches the connection, and sends a whole or a streamed response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.extra: list[Header] = []  # Sent with whatever response there will be.
        self.gone = False
        self._receive = receive
        self._send = send
        self._started = False
        self._complete = False

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises `HttpError` (413) as soon as it proves to be over the limit."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While inside, a client that goes away cancels this task, and `gone` is set."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._watch(task), name="themis watch client")
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # Servers also say "disconnect" once the response is complete.
        if not self._complete:
            self.gone = True
            task.cancel("the client has gone")

    async def reply(
        self,
        body: bytes,
        status: int = 200,
        headers: Iterable[Header] = (),
        content_type: bytes = b"application/json",
    ) -> None:
        """Send a whole response, JSON unless said otherwise."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, ((b"content-type", content_type), length, *headers))
        await self.send(body, last=True)

    async def start_stream(self) -> None:
        """Send the head of a stream of server-sent events; `send` sends its parts."""
        await self._start(200, _STREAM)

    async def send(self, body: bytes, *, last: bool) -> None:
        """Send a part of the body. Waits while the client does not keep up."""
        self._complete = last
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, problem: Problem) -> None:
        """Say that the request failed: as a response, or in the stream if that has begun."""
        if self._complete:
            return
        body = problem.body()
        if self._started:
            await self.send(b"data: " + body + b"\n\n" + STREAM_END, last=True)
        else:
            await self.reply(body, problem.status, problem.headers)

    async def _start(self, status: int, headers: Iterable[Header]) -> None:
        self._started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *self.extra],
            }
        )


def _too_large(limit: int) -> HttpError:
    message = f"The request body is larger than the {limit} bytes that this server accepts."
    return HttpError(Problem(status=413, message=message, code="body_too_large"))
