"""A light load generator for the OpenAI API: raw HTTP/1.1 and SSE on asyncio streams.

It shares the machine with the server that it measures, so it does as little as possible: of most
chunks it only counts the bytes `"text":`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

_END = b"data: [DONE]"


class WrongAnswer(Exception):
    """A server did something else than it was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer: when it was asked for and when its texts came, in seconds."""

    asked: float
    first: float
    last: float
    tokens: int

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.first - self.asked

    @property
    def tpot(self) -> float:
        """Time per output token after the first."""
        return (self.last - self.first) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Run:
    """What a closed loop of clients got."""

    seconds: float
    answers: list[Answer]

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all clients."""
        return sum(answer.tokens for answer in self.answers) / self.seconds


@dataclass(frozen=True, slots=True)
class Target:
    """A server, how to ask it, and what every answer must have."""

    port: int
    extra: dict[str, Any]
    prompt_tokens: int
    max_tokens: int

    def body(self, prompt: str, *, stream: bool) -> bytes:
        """The JSON of a completion request."""
        fields = {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
            **self.extra,
        }
        return json.dumps(fields).encode()


async def drive(target: Target, prompts: Sequence[str], clients: int) -> Run:
    """`clients` at once, each asking for the next prompt as soon as it has its answer."""
    waiting = iter(prompts)
    answers: list[Answer] = []

    async def client() -> None:
        for prompt in waiting:
            answers.append(await stream_completion(target, prompt))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return Run(time.perf_counter() - start, answers)


async def stream_completion(target: Target, prompt: str) -> Answer:
    """One streamed completion. Raises `WrongAnswer` unless it is complete."""
    asked = time.perf_counter()
    first = last = 0.0
    texts = 0
    reason = usage = None
    ended = False
    async for event in _events(target.port, target.body(prompt, stream=True)):
        if event.startswith(_END):
            ended = True
        elif b'"text"' in event or b'_tokens"' in event:
            # Only the first and the last chunks are worth parsing: those with reason or usage.
            if not texts or b'"length"' in event or b'_tokens"' in event:
                chunk = json.loads(event.removeprefix(b"data:"))
                usage = chunk.get("usage") or usage
                choice = (chunk.get("choices") or [{}])[0]
                reason = choice.get("finish_reason") or reason
                if not choice.get("text"):
                    continue
            last = time.perf_counter()
            first = first or last
            texts += 1
        elif b'"error"' in event:
            raise WrongAnswer(event.decode())
    tokens = usage["completion_tokens"] if usage else texts
    _check(target, tokens, reason, usage)
    if not ended or not texts:
        raise WrongAnswer(f"The stream broke off after {texts} texts.")
    return Answer(asked, first, last, tokens)


async def complete(target: Target, prompt: str) -> str:
    """One whole completion. Raises `WrongAnswer` unless its usage is what was asked for."""
    parts = [part async for part in _body(target.port, target.body(prompt, stream=False))]
    answer = json.loads(b"".join(parts))
    if "choices" not in answer:
        raise WrongAnswer(str(answer))
    usage, choice = answer["usage"], answer["choices"][0]
    _check(target, usage["completion_tokens"], choice["finish_reason"], usage)
    return str(choice["text"])


def _check(target: Target, tokens: int, reason: str | None, usage: dict[str, Any] | None) -> None:
    """Less work than asked for must never look like speed."""
    if tokens != target.max_tokens or reason != "length":
        raise WrongAnswer(f"{tokens} tokens, not {target.max_tokens}; finish_reason {reason}.")
    if usage and usage["prompt_tokens"] != target.prompt_tokens:
        raise WrongAnswer(f"{usage['prompt_tokens']} prompt tokens, not {target.prompt_tokens}.")


async def _events(port: int, body: bytes) -> AsyncIterator[bytes]:
    """The SSE events of an answer, each without its final blank line."""
    buffer = b""
    async for part in _body(port, body):
        buffer += part.replace(b"\r\n", b"\n")
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            yield event


async def _body(port: int, body: bytes) -> AsyncIterator[bytes]:
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
