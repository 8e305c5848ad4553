"""`GrpcDoor`: vLLM's own gRPC service, `vllm serve --grpc`."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from themis_core.errors import (
    BackendClosed,
    BackendFailed,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
    ThemisError,
)
from themis_core.messages import ChatMessage, Tool
from themis_engine.runner import Tokenizer
from themis_vllm_remote.door import Embedded, Facts, Load, Order, Piece
from themis_vllm_remote.grpc import vllm_pb2 as pb
from themis_vllm_remote.grpc.address import GrpcAddress
from themis_vllm_remote.grpc.channel import ChannelOptions, open_channel
from themis_vllm_remote.grpc.messages import Reader, generate_request, refused
from themis_vllm_remote.grpc.tokenizer import too_large, unpack

_SERVICE = "/vllm.grpc.engine.VllmEngine/"
_PAUSE = 0.2  # Seconds between looks at a server that is starting.
_CALL = 30.0  # Seconds for what a healthy server answers at once.
_END: Any = grpc.aio.EOF
# The last is what a call on a closed channel raises.
_ERRORS = (grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.UsageError)


class GrpcDoor:
    """`has_tokenizer`: the server's own files are not needed."""

    def __init__(
        self, address: GrpcAddress, options: ChannelOptions, has_tokenizer: bool = False
    ) -> None:
        self._address = address
        self._options = options
        self._has_tokenizer = has_tokenizer
        self._channel: grpc.aio.Channel | None = None
        self._open = False

    @property
    def where(self) -> str:
        """The endpoint's URL."""
        return self._address.url

    async def open(self) -> Facts:
        """Wait until the server is healthy, and learn its model and its tokenizer."""
        self._channel = open_channel(self._address, self._options)
        self._open = True
        try:
            await self._healthy()
            found = await self._call("GetModelInfo", pb.Empty(), pb.ModelInfo)
            loads = await self._call("GetLoads", pb.Empty(), pb.Loads)
            tokenizer = None if self._has_tokenizer else await self._fetch()
        except BaseException as error:
            await self.aclose()
            if isinstance(error, BackendFailed | Overloaded):
                raise ModelLoadFailed(
                    error.message,
                    field="endpoint",
                    remedy="Start `vllm serve --grpc` there, correct the endpoint, or raise "
                    "start_timeout.",
                    plugin="vllm",
                ) from error
            raise
        return Facts(
            model=found.served_model_name or found.model_path,
            context=found.max_context_length,
            vocab_size=found.vocab_size,
            version=loads.version,
            generate=found.is_generation,
            embed=not found.is_generation,
            tokenizer=tokenizer,
        )

    async def generate(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """Over `Generate`. Ending the call ends the generation."""
        message = generate_request(order)
        reader = Reader(order.request.sampling.stop_token_ids)
        try:
            call = self._method("Generate", pb.GenerateResponse, stream=True)(message)
        except _ERRORS as error:
            raise self._translated(error) from _bare(error)
        try:
            while True:
                try:
                    response = await self._read(call)
                except _ERRORS as error:
                    raise self._translated(error) from _bare(error)
                if response is _END:
                    return
                pieces = list(reader.pieces(response))
                if pieces:
                    yield pieces
        finally:
            call.cancel()

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embedded:
        """A call for each input: the service takes one at a time."""
        try:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self._embed_one(item)) for item in inputs]
        except ExceptionGroup as failed:  # The first of them has ended the others.
            raise failed.exceptions[0] from None
        answers = [call.result() for call in calls]
        return Embedded(
            tuple(tuple(answer.embedding) for answer in answers),
            sum(answer.prompt_tokens for answer in answers),
        )

    async def encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Not here: the tokenizer is on this side."""
        raise refused("prompt", "texts")

    async def decode(self, ids: Sequence[int]) -> str:
        """Not here either."""
        raise refused("token_ids", "texts")

    async def load_adapter(self, name: str, path: str) -> None:
        """Not possible."""
        raise refused("adapters", "LoRA adapters")

    async def unload_adapter(self, name: str) -> None:
        """Not possible."""
        raise refused("adapters", "LoRA adapters")

    async def load(self) -> Load:
        """From `GetLoads`."""
        found = await self._call("GetLoads", pb.Empty(), pb.Loads)
        return Load(
            running=sum(load.num_running_reqs for load in found.loads),
            waiting=sum(load.num_waiting_reqs for load in found.loads),
            kv_usage=max((load.token_usage for load in found.loads), default=0.0),
        )

    async def back(self) -> None:
        """Wait for `HealthCheck`."""
        await self._healthy()

    async def aclose(self) -> None:
        """Close the channel; calls in flight end."""
        self._open = False
        channel, self._channel = self._channel, None
        if channel is not None:
            # Shielded: a cancelled close must still not leave a connection behind.
            await asyncio.shield(asyncio.ensure_future(channel.close()))
            del channel
            # Ended calls refer to themselves; until they are collected, grpcio's thread stays.
            gc.collect()

    # --- calls -----------------------------------------------------------------------------------

    def _method(self, name: str, answer: type[Message], *, stream: bool = False) -> Any:
        if self._channel is None:
            raise self._closed()
        make = self._channel.unary_stream if stream else self._channel.unary_unary
        return make(
            _SERVICE + name,
            request_serializer=_serialize,
            response_deserializer=answer.FromString,
        )

    async def _call(
        self, name: str, message: Message, answer: type[Any], limit: float = _CALL
    ) -> Any:
        try:
            return await self._method(name, answer)(message, timeout=limit)
        except _ERRORS as error:
            raise self._translated(error) from _bare(error)

    async def _read(self, call: Any) -> Any:
        """The next answer; one that does not come for long is none."""
        try:
            async with asyncio.timeout(self._options.stall_timeout):
                return await call.read()
        except TimeoutError as error:
            call.cancel()
            raise self._lost("it brings nothing") from error

    async def _embed_one(self, item: str | Sequence[int]) -> Any:
        assert not isinstance(item, str)
        message = pb.EmbedRequest(tokenized=pb.Tokenized(input_ids=item))
        message.request_id = f"embed-{id(message):x}"
        # As long as other work may take: the server puts inputs into a queue.
        limit = self._options.stall_timeout
        return await self._call("Embed", message, pb.EmbedResponse, limit)

    async def _fetch(self) -> Tokenizer:
        """The tokenizer files. Raises `ModelLoadFailed`."""
        data, digest = bytearray(), ""
        try:
            method = self._method("GetTokenizer", pb.TokenizerChunk, stream=True)
            call = method(pb.Empty(), timeout=_CALL)
            async for piece in call:
                data += piece.data
                digest = piece.sha256 or digest
                if too_large(len(data)):
                    call.cancel()
                    break
        except _ERRORS as error:
            raise self._translated(error) from _bare(error)
        # In a thread: large vocabularies take a second.
        return await asyncio.to_thread(unpack, bytes(data), digest, self.where)

    async def _healthy(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.start_timeout
        while True:
            try:
                limit = max(0.1, end - loop.time())
                health = await self._call("HealthCheck", pb.Empty(), pb.Health, limit)
                if health.healthy:
                    return
                problem: ThemisError = self._lost(f"it is not healthy ({health.message})")
            except BackendFailed as error:
                problem = error
            if loop.time() + _PAUSE > end:
                raise problem
            await asyncio.sleep(_PAUSE)

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, grpc.aio.AioRpcError):
            return self._of_status(error)
        task = asyncio.current_task()
        # Closing the channel cancels its calls, which is not the caller's doing.
        cancelled = isinstance(error, asyncio.CancelledError)
        if cancelled and (self._open or (task is not None and task.cancelling())):
            return error
        return self._closed()

    def _of_status(self, error: grpc.aio.AioRpcError) -> ThemisError:
        said = " ".join((error.details() or "").split())
        match error.code():
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
                return InvalidRequest(
                    f"vLLM at {self.where} refuses the request. It says: {said}",
                    field="prompt",
                    plugin="vllm",
                )
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Overloaded(
                    f"vLLM at {self.where} takes nothing now. It says: {said}", plugin="vllm"
                )
            case grpc.StatusCode.UNAVAILABLE:
                return self._lost(f"nobody answers there, or the connection was lost ({said})")
        return self._lost(f"{error.code().name}: {said}")

    def _lost(self, why: str) -> BackendFailed:
        return BackendFailed(
            f"vLLM at {self.where}: {why}.", remedy="Repeat the request.", plugin="vllm"
        )

    def _closed(self) -> BackendClosed:
        return BackendClosed(f"The connection to {self.where} is not open.", plugin="vllm")


def _bare(error: BaseException) -> BaseException | None:
    """An error without its traceback: the frames hold the call, and so the channel's thread."""
    return None if isinstance(error, asyncio.CancelledError) else error.with_traceback(None)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
