"""`CallingBackend`: a `Backend` that makes a call of `Inference` for each request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio

from themis_core.errors import BackendClosed, BackendFailed, ModelLoadFailed
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    Done,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
)
from themis_core.protocol import ClientOptions
from themis_grpc_transport.address import Address
from themis_grpc_transport.channels import open_channel
from themis_grpc_transport.events import embeddings_from_proto, event_from_proto
from themis_grpc_transport.facts import info_from_proto, stats_from_proto
from themis_grpc_transport.fields import expressing
from themis_grpc_transport.requests import (
    adapters_from_proto,
    embed_to_proto,
    prompt_to_proto,
    request_to_proto,
)
from themis_grpc_transport.statuses import to_themis, unreachable
from themis_grpc_transport.v1 import themis_pb2 as pb
from themis_grpc_transport.v1 import themis_pb2_grpc as services

T = TypeVar("T")


class CallingBackend:
    """What proxies that distribute requests need: they see each as a call of its own."""

    def __init__(self, address: Address, options: ClientOptions, plugin: str) -> None:
        self._address = address
        self._options = options
        self._plugin = plugin
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._info: ModelInfo | None = None
        self._answers: set[Any] = set()  # The calls that are being read.

    @property
    def info(self) -> ModelInfo:
        """Facts about the model at the other end. Raises `BackendClosed` unless started."""
        if self._info is None:
            raise self._closed()
        return self._info

    async def start(self) -> None:
        """Connect. Raises `ModelLoadFailed` if nobody answers, or without `Inference`."""
        self._channel = open_channel(self._address)
        self._stub = services.InferenceStub(self._channel)
        ask = pb.GetInfoRequest()
        try:
            self._info = info_from_proto(
                await self._stub.GetInfo(ask, timeout=self._options.connect_timeout)
            )
        except BaseException as error:
            await self.aclose()
            if isinstance(error, grpc.aio.AioRpcError):
                raise ModelLoadFailed(
                    unreachable(error, self._address).message,
                    remedy="Start a worker there (`themis worker`), or correct the address.",
                    plugin=self._plugin,
                ) from error
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """The events of one request. Closing the generator cancels the call."""
        asked = request_to_proto(request)
        limit = None
        if request.timeout is not None:
            limit = request.timeout + self._options.deadline_grace
        async with self._translated():
            call = self._open().Generate(asked, timeout=limit)
        self._answers.add(call)
        event: GenerateEvent | None = None
        try:
            while True:
                async with self._translated():
                    response = await call.read()
                if response is grpc.aio.EOF:
                    break
                for message in response.events:
                    event = event_from_proto(message)
                    yield event
            if not isinstance(event, Done):
                raise self._broken_off()
        finally:
            self._answers.discard(call)
            call.cancel()

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """The vectors, as a `Matrix`."""
        return embeddings_from_proto(await self._call("Embed", embed_to_proto(request)))

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """Token ids of a text, or of messages."""
        answer = await self._call("Tokenize", prompt_to_proto(prompt))
        return tuple(answer.token_ids)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of token ids."""
        message = _make(lambda: pb.DetokenizeRequest(token_ids=token_ids))
        text: str = (await self._call("Detokenize", message)).text
        return text

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """Load an adapter; `path` is one of the other end's."""
        message = _make(
            lambda: pb.LoadAdapterRequest(name=name, path=path, description=description)
        )
        await self._call("LoadAdapter", message)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        message = _make(lambda: pb.UnloadAdapterRequest(name=name))
        await self._call("UnloadAdapter", message)

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """The adapters that the other end has loaded."""
        answer = await self._call("ListAdapters", pb.ListAdaptersRequest())
        return adapters_from_proto(answer.adapters)

    async def stats(self) -> BackendStats:
        """The other end's counters, those of its other clients included."""
        return stats_from_proto(await self._call("GetStats", pb.GetStatsRequest()))

    async def aclose(self) -> None:
        """Disconnect; the other end cancels what it did for this client."""
        self._info = self._stub = None
        channel, self._channel = self._channel, None
        for call in self._answers:  # Closing a channel ends only those that are just awaited.
            call.cancel()
        if channel is not None:
            # Shielded: a cancelled close must still not leave a connection behind.
            await asyncio.shield(asyncio.ensure_future(channel.close()))

    async def _call(self, method: str, message: Any, limit: float | None = None) -> Any:
        async with self._translated():
            return await getattr(self._open(), method)(message, timeout=limit)

    def _open(self) -> Any:
        if self._stub is None:
            raise self._closed()
        return self._stub

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Raises the server's own error, and `BackendClosed` for a call that `aclose` ended."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if self._stub is None:
                raise self._closed() from error
            translated = to_themis(error, self._address.url, self._plugin)
            raise translated from translated.__cause__ or error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._stub is not None or (task is not None and task.cancelling()):
                raise
            raise self._closed() from error
        except grpc.aio.UsageError as error:  # The channel was closed before the call began.
            raise self._closed() from error

    def _broken_off(self) -> BackendClosed | BackendFailed:
        """Why an answer ended without an error and without its end."""
        if self._stub is None:
            return self._closed()
        return BackendFailed(
            f"The server at {self._address.url} broke off its answer.", plugin=self._plugin
        )

    def _closed(self) -> BackendClosed:
        return BackendClosed(
            f"The connection to {self._address.url} is not open.", plugin=self._plugin
        )


def _make(build: Callable[[], T]) -> T:
    """A message. Raises `InvalidRequest` for what Protobuf cannot express."""
    with expressing():
        message = build()
    return message  # noqa: RET504 - mypy does not see that the context lets nothing by.
