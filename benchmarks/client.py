"""A light load generator for the OpenAI API: raw HTTP/1.1 and SSE on asyncio streams.

It shares the machine with the server that it measures, so it does as little as possible: where the
text is not looked at, it only counts the bytes `"text":` of most chunks.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import jsonschema  # type: ignore[import-untyped, unused-ignore]

from benchmarks.traffic import Ask, Traffic

_END = b"data: [DONE]"
# The fields of a request's body that one server needs for this request, beside OpenAI's.
Fields = Callable[[Ask], dict[str, Any]]


class WrongAnswer(Exception):
    """A server did something else than it was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer: when it was asked for and when its texts came, in seconds."""

    asked: float
    first: float
    last: float
    tokens: int
    cached_tokens: int = 0
    stopped: bool = False

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.first - self.asked

    @property
    def tpot(self) -> float:
        """Time per output token after the first."""
        return (self.last - self.first) / max(1, self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Run:
    """What a closed loop of clients got, and how many answers those beside them."""

    seconds: float
    answers: list[Answer]
    beside: int = 0


@dataclass(slots=True)
class _Stream:
    """What has come of one answer."""

    first: float = 0.0
    last: float = 0.0
    texts: int = 0
    text: list[str] = field(default_factory=list)
    reason: str | None = None
    usage: dict[str, Any] | None = None

    def take(self, event: bytes, *, whole: bool) -> None:
        """A chunk. Only the first and the last are parsed, if nobody looks at the text."""
        if whole or not self.texts or b'"length"' in event or b'_tokens"' in event:
            chunk = json.loads(event.removeprefix(b"data:"))
            self.usage = chunk.get("usage") or self.usage
            choice = (chunk.get("choices") or [{}])[0]
            self.reason = choice.get("finish_reason") or self.reason
            if not choice.get("text"):
                return
            if whole:
                self.text.append(choice["text"])
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.texts += 1


async def drive(port: int, fields: Fields, traffic: Traffic, clients: int) -> Run:
    """`clients` at once, each asking for the next thing as soon as it has its answer.

    The clients of `traffic.beside` ask their own again and again until those are done; an answer
    that is still on its way is then dropped.
    """
    waiting = iter(traffic.asks)
    answers: list[Answer] = []
    beside = 0

    async def client() -> None:
        for ask in waiting:
            answers.append(await stream_completion(port, fields, ask))

    async def other(asks: Iterator[Ask]) -> None:
        nonlocal beside
        for ask in asks:
            await stream_completion(port, fields, ask)
            beside += 1

    start = time.perf_counter()
    async with asyncio.TaskGroup() as everyone:
        others = [everyone.create_task(other(iter(asks))) for asks in traffic.beside]
        async with asyncio.TaskGroup() as group:
            for _ in range(clients - len(others)):
                group.create_task(client())
        seconds = time.perf_counter() - start
        if others and any(task.done() for task in others):
            raise WrongAnswer("The clients beside ran out of things to ask for.")
        for task in others:
            task.cancel()
    return Run(seconds, answers, beside)


async def stream_completion(port: int, fields: Fields, ask: Ask) -> Answer:
    """One streamed completion. Raises `WrongAnswer` unless it is complete and as asked for."""
    asked = time.perf_counter()
    stream, ended = _Stream(), False
    whole = ask.schema is not None or ask.expected is not None
    async with aclosing(_events(port, _encode(ask, fields(ask), stream=True))) as events:
        async for event in events:
            if event.startswith(_END):
                ended = True
            elif b'"text"' in event or b'_tokens"' in event:
                stream.take(event, whole=whole)
            elif b'"error"' in event:
                raise WrongAnswer(event.decode())
    if not ended or not stream.texts:
        raise WrongAnswer(f"The stream broke off after {stream.texts} texts.")
    tokens = stream.usage["completion_tokens"] if stream.usage else stream.texts
    _check(ask, tokens, stream.reason, stream.usage)
    _check_text(ask, "".join(stream.text), stream.reason)
    details = (stream.usage or {}).get("prompt_tokens_details") or {}
    return Answer(
        asked,
        stream.first,
        stream.last,
        tokens,
        details.get("cached_tokens") or 0,
        stream.reason == "stop",
    )


async def complete(port: int, fields: Fields, ask: Ask) -> str:
    """One whole completion. Raises `WrongAnswer` unless its usage is what was asked for."""
    body = _encode(ask, fields(ask), stream=False)
    answer = json.loads(b"".join([part async for part in _body(port, body)]))
    if "choices" not in answer:
        raise WrongAnswer(str(answer))
    usage, choice = answer["usage"], answer["choices"][0]
    _check(ask, usage["completion_tokens"], choice["finish_reason"], usage)
    return str(choice["text"])


def _check(ask: Ask, tokens: int, reason: str | None, usage: dict[str, Any] | None) -> None:
    """Less work than asked for must never look like speed."""
    if ask.schema is not None and reason == "stop":
        if not 0 < tokens <= ask.max_tokens:
            raise WrongAnswer(f"{tokens} tokens, at most {ask.max_tokens} were asked for.")
    elif tokens != ask.max_tokens or reason != "length":
        raise WrongAnswer(f"{tokens} tokens, not {ask.max_tokens}; finish_reason {reason}.")
    if usage and ask.tokens is not None and usage["prompt_tokens"] != ask.tokens:
        raise WrongAnswer(f"{usage['prompt_tokens']} prompt tokens, not {ask.tokens}.")


def _check_text(ask: Ask, text: str, reason: str | None) -> None:
    """What ended by itself must be valid, and what is to be copied must be the same."""
    if ask.expected is not None and text != ask.expected:
        raise WrongAnswer(f"{text!r} is not {ask.expected!r}.")
    if ask.schema is None or reason != "stop":
        return
    try:
        jsonschema.validate(json.loads(text), ask.schema)
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        raise WrongAnswer(f"{text!r} does not obey the schema: {error}") from None


def _encode(ask: Ask, extra: dict[str, Any], *, stream: bool) -> bytes:
    """The JSON of a completion request."""
    fields = {
        "model": "bench",
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        **extra,
    }
    return json.dumps(fields).encode()


async def _events(port: int, body: bytes) -> AsyncGenerator[bytes, None]:
    """The SSE events of an answer, each without its final blank line."""
    buffer = b""
    async with aclosing(_body(port, body)) as parts:
        async for part in parts:
            buffer += part.replace(b"\r\n", b"\n")
            *events, buffer = buffer.split(b"\n\n")
            for event in events:
                yield event


async def _body(port: int, body: bytes) -> AsyncGenerator[bytes, None]:
    """POST to /v1/completions on a connection of its own; the parts of the answer's body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in headers.split(b"\r\n", 1)[0]:
            raise WrongAnswer((headers + await reader.read(2000)).decode("utf-8", "replace"))
        if b"transfer-encoding: chunked" not in headers:
            while part := await reader.read(65536):
                yield part
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
    finally:
        writer.close()
