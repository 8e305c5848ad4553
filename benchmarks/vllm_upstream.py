"""A server that streams as vLLM does, as fast as Python can: `python -m benchmarks.vllm_upstream`.

It prints its port, and answers each completion with `max_tokens` events of one token that were made
beforehand, so that it costs little beside the client that is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys

EVENTS = 16  # In one write: as many as a busy server's tokens would come together.
MODELS = json.dumps({"data": [{"id": "fake", "max_model_len": 1_000_000}]}).encode()
FIXED = {
    b"/health": b"",
    b"/version": b'{"version": "fake"}',
    b"/v1/models": MODELS,
}


def event(first: bool, last: bool) -> bytes:
    """One token, as `/v1/completions` with `return_token_ids` has it."""
    choice = {
        "index": 0,
        "text": " word",
        "logprobs": None,
        "finish_reason": "length" if last else None,
        "stop_reason": None,
        "token_ids": [42],
    }
    if first:
        choice["prompt_token_ids"] = [1, 2, 3, 4]
    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1, "model": "f"}
    return b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"


FIRST, NEXT, LAST = event(True, False), event(False, False), event(False, True)


def chunk(data: bytes) -> bytes:
    """HTTP's chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, which may ask several times."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ", 2)[1]
            length = next(
                (int(line.split(b":")[1]) for line in head.split(b"\r\n") if _is_length(line)), 0
            )
            body = await reader.readexactly(length)
            if path == b"/v1/completions" and body:
                await stream(writer, json.loads(body)["max_tokens"])
            else:
                fixed = FIXED.get(path)
                status = b"404 Not Found" if fixed is None else b"200 OK"
                if path == b"/v1/completions":
                    status = b"405 Method Not Allowed"
                answer = fixed or b""
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(answer), answer)
                )
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _is_length(line: bytes) -> bool:
    return line.lower().startswith(b"content-length:")


async def stream(writer: asyncio.StreamWriter, tokens: int) -> None:
    """An answer of so many tokens."""
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(chunk(FIRST))
    left = tokens - 2
    while left > 0:
        count = min(left, EVENTS)
        writer.write(b"".join([chunk(NEXT)] * count))
        left -= count
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(chunk(LAST) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()


async def main() -> None:
    """Serve until standard input ends."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
