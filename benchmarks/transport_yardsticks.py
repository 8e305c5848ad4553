"""What transports are compared with: HTTP/JSON, ZeroMQ, bare gRPC. Run as a script: a server.

Both carry the same: 512 token ids there; 100 back at once, or one in each event.
`python -m benchmarks.transport_yardsticks http|zmq|grpc PATH` serves at a Unix socket until its
standard input ends; so does `themis-single SCHEME://PATH`, a Themis worker that batches nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
import uvloop

from themis_core.contracts import Transport
from themis_core.protocol import ServerOptions
from themis_core.worker.bench import ANSWER_IDS, MATRIX_COLUMNS, MATRIX_ROWS, PROMPT_IDS
from themis_grpc_transport.transport import GrpcTransport
from themis_shm_transport.transport import SocketTransport

MATRIX = bytes(4 * MATRIX_ROWS * MATRIX_COLUMNS)
BODY = {"prompt": list(PROMPT_IDS), "max_tokens": len(ANSWER_IDS)}


def transport_of(scheme: str, options: ServerOptions | None = None) -> Transport:
    """The transport of a URL scheme."""
    kind = GrpcTransport if scheme == "grpc" else SocketTransport
    return kind(scheme, server=options)


class Client(Protocol):
    """A yardstick's client."""

    async def unary(self) -> None:
        """512 ids there, 100 back."""
        ...

    async def stream(self, tokens: int) -> None:
        """One event for each token."""
        ...

    async def matrix(self) -> None:
        """16 MiB."""
        ...


# --- HTTP and JSON -------------------------------------------------------------------------------


async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """An ASGI application that computes nothing."""
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        part = await receive()
        body += part.get("body", b"")
        more = part.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/matrix":
        await send({"type": "http.response.body", "body": MATRIX})
        return
    request = json.loads(body)
    if scope["path"] == "/unary":
        answer = {"text": "x" * 100, "token_ids": ANSWER_IDS, "finish_reason": "length"}
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
        return
    for token in range(request["max_tokens"]):
        event = f"data: {json.dumps({'text': ' token', 'token_ids': [token]})}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class AioHttp:
    """aiohttp's client over a Unix socket."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def unary(self) -> None:
        async with self._session.post("http://x/unary", json=BODY) as response:
            assert len((await response.json(content_type=None))["token_ids"]) == 100

    async def stream(self, tokens: int) -> None:
        body = {**BODY, "max_tokens": tokens}
        count = 0
        async with self._session.post("http://x/stream", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data:"):
                    json.loads(line[5:])
                    count += 1
        assert count == tokens

    async def matrix(self) -> None:
        async with self._session.post("http://x/matrix") as response:
            assert len(await response.read()) == len(MATRIX)


class Httpx:
    """httpx's client over a Unix socket."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def unary(self) -> None:
        response = await self._client.post("/unary", json=BODY)
        assert len(response.json()["token_ids"]) == 100

    async def stream(self, tokens: int) -> None:
        count = 0
        body = {**BODY, "max_tokens": tokens}
        async with self._client.stream("POST", "/stream", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    json.loads(line[5:])
                    count += 1
        assert count == tokens

    async def matrix(self) -> None:
        response = await self._client.post("/matrix")
        assert len(response.content) == len(MATRIX)


@asynccontextmanager
async def aiohttp_client(path: str) -> AsyncIterator[Client]:
    """aiohttp, keeping connections."""
    import aiohttp

    connector = aiohttp.UnixConnector(path=path, limit=64)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield AioHttp(session)


@asynccontextmanager
async def httpx_client(path: str) -> AsyncIterator[Client]:
    """httpx, keeping connections."""
    import httpx

    transport = httpx.AsyncHTTPTransport(uds=path)
    async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as client:
        yield Httpx(client)


# --- ZeroMQ --------------------------------------------------------------------------------------

_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


class Zmq:
    """A DEALER; answers carry the number of their request."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = 0
        self._waiting: dict[int, asyncio.Queue[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def unary(self) -> None:
        async for answer in self._ask("unary", list(PROMPT_IDS), 100):
            assert len(answer) == 100

    async def stream(self, tokens: int) -> None:
        count = 0
        async for _ in self._ask("stream", list(PROMPT_IDS), tokens):
            count += 1
        assert count == tokens

    async def matrix(self) -> None:
        async for answer in self._ask("matrix", [], 0):
            assert len(answer) == len(MATRIX)

    async def aclose(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _ask(self, kind: str, ids: list[int], tokens: int) -> AsyncIterator[Any]:
        self._numbers += 1
        number = self._numbers
        queue = self._waiting[number] = asyncio.Queue()
        await self._socket.send(_encode((number, kind, ids, tokens)))
        while (answer := await queue.get()) is not None:
            yield answer
        del self._waiting[number]

    async def _read(self) -> None:
        while True:
            number, answer = _decode(await self._socket.recv())
            self._waiting[number].put_nowait(answer)


@asynccontextmanager
async def zmq_client(path: str) -> AsyncIterator[Client]:
    """pyzmq's asyncio sockets over ipc."""
    import zmq.asyncio

    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(f"ipc://{path}")
    client = Zmq(socket)
    try:
        yield client
    finally:
        await client.aclose()
        socket.close(0)
        context.term()


async def serve_zmq(path: str) -> None:
    """A ROUTER that answers each request in a task of its own."""
    import zmq.asyncio

    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    socket.set_hwm(0)
    socket.bind(f"ipc://{path}")
    tasks = set()

    async def answer(peer: bytes, number: int, kind: str, tokens: int) -> None:
        if kind == "unary":
            await socket.send_multipart([peer, _encode((number, ANSWER_IDS))])
        elif kind == "matrix":
            await socket.send_multipart([peer, _encode((number, MATRIX))])
        else:
            for token in range(tokens):
                await socket.send_multipart([peer, _encode((number, (" token", (token,))))])
        await socket.send_multipart([peer, _encode((number, None))])

    while True:
        peer, data = await socket.recv_multipart()
        number, kind, _, tokens = _decode(data)
        task = asyncio.create_task(answer(peer, number, kind, tokens))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


# --- gRPC ----------------------------------------------------------------------------------------


class Grpc:
    """One long-lived bidirectional stream of bytes; answers carry the number of their request."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._numbers = 0
        self._writing = asyncio.Lock()
        self._waiting: dict[int, asyncio.Queue[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def unary(self) -> None:
        async for answer in self._ask("unary", list(PROMPT_IDS), 100):
            assert len(answer) == 100

    async def stream(self, tokens: int) -> None:
        count = 0
        async for _ in self._ask("stream", list(PROMPT_IDS), tokens):
            count += 1
        assert count == tokens

    async def matrix(self) -> None:
        async for answer in self._ask("matrix", [], 0):
            assert len(answer) == len(MATRIX)

    async def aclose(self) -> None:
        await self._call.done_writing()
        await self._reader

    async def _ask(self, kind: str, ids: list[int], tokens: int) -> AsyncIterator[Any]:
        self._numbers += 1
        number = self._numbers
        queue = self._waiting[number] = asyncio.Queue()
        async with self._writing:
            await self._call.write(_encode((number, kind, ids, tokens)))
        last = False
        while not last:
            last, answer = await queue.get()
            yield answer
        del self._waiting[number]

    async def _read(self) -> None:
        import grpc.aio

        while (data := await self._call.read()) is not grpc.aio.EOF:
            number, last, answer = _decode(data)
            self._waiting[number].put_nowait((last, answer))


_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@asynccontextmanager
async def grpc_client(path: str) -> AsyncIterator[Client]:
    """grpcio's asyncio client, without Protobuf."""
    import grpc.aio

    async with grpc.aio.insecure_channel(f"unix:{path}", options=_UNLIMITED) as channel:
        client = Grpc(channel.stream_stream("/bare/Stream")())
        yield client
        await client.aclose()


async def serve_grpc(path: str) -> None:
    """grpcio's asyncio server; each request is answered in a task of its own."""
    import grpc.aio

    async def stream(requests: Any, context: Any) -> None:
        writing, tasks = asyncio.Lock(), set()

        async def write(*message: Any) -> None:
            async with writing:
                await context.write(_encode(message))

        async def answer(number: int, kind: str, tokens: int) -> None:
            if kind == "unary":
                await write(number, True, ANSWER_IDS)
            elif kind == "matrix":
                await write(number, True, MATRIX)
            for token in range(tokens if kind == "stream" else 0):
                await write(number, token == tokens - 1, (" token", (token,)))

        while (data := await context.read()) is not grpc.aio.EOF:
            number, kind, _, tokens = _decode(data)
            task = asyncio.create_task(answer(number, kind, tokens))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = grpc.aio.server(options=_UNLIMITED)
    handler: Any = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bare", {"Stream": handler}),)
    )
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(None)


async def serve_http(path: str) -> None:
    """uvicorn, as fast as it goes: httptools, uvloop, no log."""
    import uvicorn

    config = uvicorn.Config(app, uds=path, log_level="critical", access_log=False, lifespan="off")
    await uvicorn.Server(config).serve()


async def serve(kind: str, where: str) -> None:
    """Until standard input ends."""
    if kind == "themis-single":
        from themis_core.worker.bench import serve_bench

        scheme = where.partition(":")[0]
        await serve_bench(transport_of(scheme, ServerOptions(batch=False)), where)
        return
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stop.set)
    task = asyncio.create_task(
        {"http": serve_http, "zmq": serve_zmq, "grpc": serve_grpc}[kind](where)
    )
    await stop.wait()
    task.cancel()
    await asyncio.wait([task])


if __name__ == "__main__":
    arguments = sys.argv[1:] if len(sys.argv) == 3 else ["themis-single", sys.argv[1]]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(*arguments))
