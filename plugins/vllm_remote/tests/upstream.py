"""A small HTTP server that speaks as vLLM does, and misbehaves as it is told.

Its model writes the tokens (prompt[-1] + 1, + 2, …) modulo the bundled model's vocabulary; what it
was sent is in `bodies`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

import themis_tiny_model
from themis_engine.hf_tokenizer import HfTokenizer
from themis_engine.text import TextStream

TOKENIZER = themis_tiny_model.path("hf")
VOCABULARY = 1915  # Without the special tokens at the end.
Misbehaviour = Callable[["Stream"], Awaitable[None]]


class Stream:
    """One answer being written; a misbehaviour is called before each event of number `count`."""

    def __init__(self, upstream: Upstream, request: web.Request) -> None:
        self.upstream = upstream
        self.request = request
        self.count = 0

    def cut(self) -> None:
        """Reset the connection."""
        assert self.request.transport is not None
        self.request.transport.abort()

    async def stall(self) -> None:
        """Bring nothing more, until the client goes away."""
        await asyncio.Event().wait()


class Upstream:
    """Change the attributes to change what it does; `on_event` may do anything to a stream."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status: list[int] = []  # For the next requests to generate, one each.
        self.healthy = True
        self.on_event: Misbehaviour | None = None
        self.end_at: int | None = None  # Ends the stream there, properly but early.
        self.says: dict[int, bytes] = {}  # Instead of the event of this number.
        self.cap: int | None = None  # As a generation_config.json would.
        self.context = 2048
        self.model = "tiny"
        self.tokens_route = False
        self.adapters: dict[str, str] = {}
        self.on_load: Callable[[], Awaitable[None]] | None = None  # Before an adapter is loaded.
        self.unload_status: list[int] = []  # For the next adapters to unload, one each.
        self.on_tokenize: Callable[[], Awaitable[None]] | None = None
        self.others = 0
        self.running = 0
        self.most_running = 0
        self.key = ""
        self.pause = 0.0
        self._tokenizer = HfTokenizer(TOKENIZER)
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.socket = ""  # A file to listen at, instead of a port.
        self.tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        if self.socket:
            return f"http+unix://{self.socket}"
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        """Listen."""
        app = web.Application(middlewares=[self._guard], client_max_size=2**26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", _json({"version": "0.32.0"}))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._refuse)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/inference/v1/generate", self._generate)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        if self.socket:
            await web.UnixSite(self._runner, self.socket).start()
            return
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close everything, at once."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> Any:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        page = (
            "# HELP vllm:num_requests_running Number of requests.\n"
            f'vllm:num_requests_running{{engine="0",model_name="t}}\\"y"}} {self.running}.0\n'
            f'vllm:num_requests_waiting{{engine="0"}} {self.others}.0\n'
        )
        return web.Response(text=page)

    async def _models(self, request: web.Request) -> web.Response:
        models: list[dict[str, Any]] = [{"id": self.model, "max_model_len": self.context}]
        models += [{"id": name, "parent": self.model} for name in self.adapters]
        return web.json_response({"data": models})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.on_tokenize is not None:
            await self.on_tokenize()
        if "prompt" not in body:
            return web.json_response({"error": {"message": "no template"}}, status=500)
        ids = self._tokenizer.encode(body["prompt"], parse_special=True)
        return web.json_response({"tokens": ids, "count": len(ids)})

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        data = b"".join(map(self._tokenizer.token_bytes, body["tokens"]))
        return web.json_response({"prompt": data.decode("utf-8", "replace")})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "missing" in body["lora_path"]:
            error = {"message": "no such file", "type": "NotFoundError", "code": 404}
            return web.json_response({"error": error}, status=404)
        if self.on_load is not None:
            await self.on_load()
        if body["lora_name"] in self.adapters:
            error = {"message": "it is loaded already", "type": "InvalidUserInput", "code": 400}
            return web.json_response({"error": error}, status=400)
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.Response:
        body = await request.json()
        status = self.unload_status.pop(0) if self.unload_status else 200
        if status != 200:
            return web.json_response({"error": {"message": "as asked"}}, status=status)
        self.adapters.pop(body["lora_name"], None)
        return web.Response(text="Success")

    async def _refuse(self, request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no chats here"}}, status=400)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, (await request.json()), texts=True)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not self.tokens_route:
            return web.json_response({"error": {"message": "disabled"}}, status=403)
        if not body:
            return web.json_response({"error": {"message": "token_ids is missing"}}, status=400)
        flat = body["sampling_params"] | {"prompt": body["token_ids"], "model": body["model"]}
        return await self._answer(request, flat, texts=False)

    async def _answer(
        self, request: web.Request, body: dict[str, Any], *, texts: bool
    ) -> web.StreamResponse:
        self.bodies.append(body)
        status = self.status.pop(0) if self.status else 200
        if body["model"] not in (self.model, *self.adapters):
            status = 404
        if status != 200:
            error = {"message": f"as asked: {status}", "type": "Any", "param": None, "code": status}
            return web.json_response({"error": error}, status=status)
        stream = Stream(self, request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._write(stream, body, texts)
        except ConnectionError:  # The client has gone away, or was cut off.
            return web.Response()
        finally:
            self.running -= 1

    async def _write(self, stream: Stream, body: dict[str, Any], texts: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(stream.request)
        prompt = body["prompt"]
        limit = min(body["max_tokens"], self.cap or body["max_tokens"])
        text = TextStream()
        for i in range(limit):
            stream.count = i
            if self.on_event is not None:
                await self.on_event(stream)
            if self.pause:
                await asyncio.sleep(self.pause)
            token = (prompt[-1] + 1 + i) % VOCABULARY
            choice: dict[str, Any] = {"index": 0, "token_ids": [token], "finish_reason": None}
            if texts:
                choice["text"] = text.push(self._tokenizer.token_bytes(token))
                if i == 0:
                    choice["prompt_token_ids"] = prompt
            if i == limit - 1:
                choice["finish_reason"] = "length"
            event = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
            if i == self.end_at:
                await response.write_eof()
                return response
            await response.write(self.says.get(i, event))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _json(value: Any) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(value)

    return handler
