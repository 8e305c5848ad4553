"""`HttpDoor`: one OpenAI-compatible server of vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from themis_core.errors import (
    AdapterNotFound,
    BackendFailed,
    InvalidRequest,
    ModelFileInvalid,
    ModelLoadFailed,
    Overloaded,
    ThemisError,
)
from themis_core.messages import ChatMessage, Tool
from themis_vllm_remote.door import Embedded, Facts, Load, Order, Piece
from themis_vllm_remote.http import bodies, chunks
from themis_vllm_remote.http.client import HttpClient
from themis_vllm_remote.http.failures import failure, translated
from themis_vllm_remote.http.metrics import load_of

_PAUSE = 0.2  # Seconds between looks at a server that is starting.
_ABSENT = 404


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Version(msgspec.Struct):
    version: str = ""


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Text(msgspec.Struct):
    prompt: str


class _Vector(msgspec.Struct):
    index: int
    embedding: tuple[float, ...]


class _Used(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Used = _Used()


class HttpDoor:
    """`model` is the name to ask for; empty for the server's first."""

    def __init__(self, client: HttpClient, model: str, start_timeout: float) -> None:
        self._client = client
        self._wanted = model
        self._model = model  # Once it is open, the server's name for it.
        self._patience = start_timeout
        self._tokens = False  # Whether it has `/inference/v1/generate`.

    @property
    def where(self) -> str:
        """The endpoint's URL."""
        return self._client.address.url

    async def open(self) -> Facts:
        """Wait until the server is healthy, and learn what it can."""
        self._client.open()
        try:
            await self._healthy()
            return await self._learn()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, BackendFailed | Overloaded | InvalidRequest):
                raise ModelLoadFailed(
                    error.message,
                    remedy=error.remedy if isinstance(error, InvalidRequest) else _remedy(error),
                    field="endpoint",
                    plugin="vllm",
                ) from error
            raise

    async def generate(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """Over the route that fits: messages, text wanted, or token ids alone."""
        kind: type[chunks.Chunk]
        if order.ids is None:
            path, body, kind = "/v1/chat/completions", bodies.chat(order, self._model), _CHAT
        elif self._tokens and not order.texts:
            path, body, kind = "/inference/v1/generate", bodies.tokens(order, self._model), _IDS
        else:
            path, body, kind = "/v1/completions", bodies.completion(order, self._model), _TEXT
        try:
            async with aclosing(self._client.stream(path, body)) as stream:
                async for events in stream:
                    with translated(self.where):
                        pieces = chunks.read(events, kind, self.where)
                    if pieces:
                        yield pieces
        except BackendFailed as error:
            if order.adapter is not None and not await self._has(order.adapter):
                raise _no_adapter(order.adapter) from error
            raise

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embedded:
        """`/v1/embeddings`; texts and ids cannot be mixed in one call."""
        vectors: dict[int, tuple[float, ...]] = {}
        used = 0
        for kind in (True, False):
            places = [i for i, item in enumerate(inputs) if isinstance(item, str) is kind]
            if not places:
                continue
            body = {"model": self._model, "input": [inputs[i] for i in places]}
            found = await self._client.post("/v1/embeddings", body, _Vectors)
            if sorted(vector.index for vector in found.data) != list(range(len(places))):
                raise BackendFailed(
                    f"vLLM at {self.where} gave {len(found.data)} vectors, not {len(places)}.",
                    plugin="vllm",
                )
            vectors |= {places[vector.index]: vector.embedding for vector in found.data}
            used += found.usage.prompt_tokens
        return Embedded(tuple(vectors[i] for i in range(len(inputs))), used)

    async def encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """`/tokenize`."""
        body: dict[str, Any] = {"model": self._model}
        if isinstance(prompt, str):
            body["prompt"] = prompt
        else:
            body["messages"] = list(map(bodies.message, prompt))
            if tools:
                body["tools"] = [bodies.tool(tool, strict=False) for tool in tools]
            if options:
                body["chat_template_kwargs"] = dict(options)
        tokens: list[int] = (await self._client.post("/tokenize", body, _Tokens)).tokens
        return tokens

    async def decode(self, ids: Sequence[int]) -> str:
        """`/detokenize`."""
        body = {"model": self._model, "tokens": list(ids)}
        text: str = (await self._client.post("/detokenize", body, _Text)).prompt
        return text

    async def load_adapter(self, name: str, path: str) -> None:
        """`/v1/load_lora_adapter`. Raises `InvalidRequest` if the server has one of that name."""
        body = {"lora_name": name, "lora_path": path}
        status, answer = await self._client.ask("POST", "/v1/load_lora_adapter", body)
        if status == 200:
            return
        error = failure(status, answer, self.where)
        if not 400 <= status < 500 and status != 500:
            raise error
        if await self._has(name):
            raise InvalidRequest(
                f"vLLM at {self.where} has an adapter {name!r} already.",
                field="name",
                remedy="Unload it first, or load the other one under a name of its own.",
                plugin="vllm",
            ) from error
        raise ModelFileInvalid(
            f"vLLM at {self.where} cannot load the adapter {path!r}. {error.message}",
            field="path",
            remedy="The directory must lie on the server's host, in PEFT's format.",
            plugin="vllm",
        ) from error

    async def unload_adapter(self, name: str) -> None:
        """`/v1/unload_lora_adapter`. That it is gone already is fine."""
        body = {"lora_name": name}
        status, answer = await self._client.ask("POST", "/v1/unload_lora_adapter", body)
        if status not in (200, _ABSENT):
            raise failure(status, answer, self.where)

    async def load(self) -> Load:
        """`/metrics`."""
        status, page = await self._client.ask("GET", "/metrics")
        if status != 200:
            raise failure(status, page, self.where)
        return load_of(page.decode("utf-8", "replace"))

    async def back(self) -> None:
        """Wait for `/health`."""
        await self._healthy()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    # --- opening ---------------------------------------------------------------------------------

    async def _healthy(self) -> None:
        """Raises the last failure of a server that is not healthy within the time."""
        end = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                async with asyncio.timeout_at(end):
                    status, body = await self._client.ask("GET", "/health")
                if status == 200:
                    return
                problem: ThemisError = failure(status, body, self.where)
                if status < 500:
                    raise problem
            except BackendFailed as error:
                problem = error
            except TimeoutError as error:
                problem = BackendFailed(f"vLLM at {self.where} does not answer.", plugin="vllm")
                problem.__cause__ = error
            if asyncio.get_running_loop().time() + _PAUSE > end:
                raise problem
            await asyncio.sleep(_PAUSE)

    async def _learn(self) -> Facts:
        models: _Models = await self._client.get("/v1/models", _Models)
        bases = [model for model in models.data if model.parent is None]
        chosen = next((m for m in bases if self._wanted in ("", m.id)), None)
        if chosen is None:
            names = ", ".join(repr(model.id) for model in bases) or "none"
            raise ModelLoadFailed(
                f"vLLM at {self.where} does not serve {self._wanted!r}; it serves {names}.",
                field="model",
                remedy="Correct the setting model, or the server's --served-model-name.",
                plugin="vllm",
            )
        self._model = chosen.id
        version: _Version = await self._client.get("/version", _Version)
        generate, embed = [
            await self._routed(f"/v1/{name}") for name in ("completions", "embeddings")
        ]
        # The route is there without --enable-scale-out too, and then forbidden.
        status, _ = await self._client.ask("POST", "/inference/v1/generate", {})
        self._tokens = status in (400, 422)
        return Facts(
            model=chosen.id,
            context=chosen.max_model_len or 0,
            version=version.version,
            generate=generate,
            embed=embed and not generate,
            adapters=tuple(m.id for m in models.data if m.parent is not None),
            takes_adapters=await self._routed("/v1/load_lora_adapter"),
        )

    async def _routed(self, path: str) -> bool:
        """Whether a route for POST exists: one that does not know GET answers otherwise."""
        status, _ = await self._client.ask("GET", path)
        return status != _ABSENT

    async def _has(self, adapter: str) -> bool:
        models: _Models = await self._client.get("/v1/models", _Models)
        return any(m.id == adapter and m.parent is not None for m in models.data)


_CHAT, _IDS, _TEXT = chunks.ChatChunk, chunks.TokenChunk, chunks.CompletionChunk


def _no_adapter(name: str) -> AdapterNotFound:
    return AdapterNotFound(
        f"The server has no adapter {name!r} any more.",
        field="adapters",
        remedy="Load it again.",
        plugin="vllm",
    )


def _remedy(error: ThemisError) -> str:
    if error.remedy and "api_key" in error.remedy:
        return error.remedy
    return "Start `vllm serve` there, correct the endpoint, or raise start_timeout."
