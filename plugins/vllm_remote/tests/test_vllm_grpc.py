"""The gRPC door against a real gRPC server that speaks as vLLM's does, and misbehaves."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from themis_core.contracts import Backend
from themis_core.errors import (
    AdapterNotFound,
    BackendFailed,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
    UnsupportedField,
)
from themis_core.messages import AdapterWeight, EmbedRequest, GenerateRequest, SamplingParams
from themis_testkit.conformance.base import begin, complete, eventually
from themis_tiny_model import path
from themis_vllm_remote.create import remote
from themis_vllm_remote.fields import honoured
from themis_vllm_remote.settings import VllmSettings

grpc = pytest.importorskip("grpc")
pytest.importorskip("google.protobuf")

from themis_vllm_remote.grpc import vllm_pb2 as pb  # noqa: E402
from themis_vllm_remote.grpc.messages import Reader  # noqa: E402

SERVICE = "vllm.grpc.engine.VllmEngine"
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json")


class Service:
    """Its model writes prompt[-1] + 1, + 2, …; `codes` are for the next requests, one each."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.codes: list[Any] = []
        self.die_at: int | None = None
        self.running = 0
        self.archive = self._archive()
        self.digest = hashlib.sha256(self.archive).hexdigest()
        self.pause = 0.0
        self.embeds = False
        self.limits: list[float] = []  # What clients gave each call to embed.

    def _archive(self) -> bytes:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for name in FILES:
                archive.write(path("hf") / name, f"../../{name}")
        return data.getvalue()

    async def generate(self, request: Any, context: Any) -> AsyncGenerator[Any, None]:
        self.requests.append(request)
        if self.codes:
            await context.abort(self.codes.pop(0), "as asked")
        params, prompt = request.sampling_params, request.tokenized.input_ids
        self.running += 1
        try:
            for i in range(params.max_tokens):
                if i == self.die_at:
                    await context.abort(grpc.StatusCode.INTERNAL, "the engine has died")
                if self.pause:
                    await asyncio.sleep(self.pause)
                token = prompt[-1] + 1 + i
                facts: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": i + 1}
                yield pb.GenerateResponse(chunk=pb.Chunk(token_ids=[token], **facts))
                stopped = token in params.stop_token_ids
                if stopped or i == params.max_tokens - 1:
                    # As vLLM: the last message has the last piece again.
                    end = pb.Complete(output_ids=[token], **facts)
                    end.finish_reason = "stop" if stopped else "length"
                    if stopped:
                        end.matched_token_id = token
                    yield pb.GenerateResponse(complete=end)
                    return
        finally:
            self.running -= 1

    async def embed(self, request: Any, context: Any) -> Any:
        """Refuses [13] once others wait; [7] waits until it is cancelled."""
        self.limits.append(context.time_remaining())
        ids = list(request.tokenized.input_ids)
        self.running += 1
        try:
            if ids == [7]:
                await asyncio.Event().wait()
            if ids == [13]:

                async def others() -> bool:
                    return self.running > 2

                await eventually(others, what="the other inputs have come")
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as asked")
        finally:
            self.running -= 1
        return pb.EmbedResponse(embedding=[3.0, 4.0], prompt_tokens=len(ids))

    async def tokenizer(self, request: Any, context: Any) -> AsyncGenerator[Any, None]:
        half = len(self.archive) // 2
        yield pb.TokenizerChunk(data=self.archive[:half])
        yield pb.TokenizerChunk(data=self.archive[half:], sha256=self.digest)

    def handler(self) -> Any:
        def fixed(answer: Any) -> Any:
            async def call(request: Any, context: Any) -> Any:
                return answer

            return grpc.unary_unary_rpc_method_handler(
                call, pb.Empty.FromString, lambda m: m.SerializeToString()
            )

        def streamed(call: Any, kind: Any) -> Any:
            return grpc.unary_stream_rpc_method_handler(
                call, kind.FromString, lambda m: m.SerializeToString()
            )

        info = pb.ModelInfo(
            is_generation=not self.embeds,
            max_context_length=2048,
            vocab_size=1920,
            served_model_name="tiny",
        )
        methods = {
            "HealthCheck": fixed(pb.Health(healthy=True)),
            "GetModelInfo": fixed(info),
            "GetLoads": fixed(pb.Loads(version="0.32.0")),
            "GetTokenizer": streamed(self.tokenizer, pb.Empty),
            "Embed": grpc.unary_unary_rpc_method_handler(
                self.embed, pb.EmbedRequest.FromString, lambda m: m.SerializeToString()
            ),
            "Generate": streamed(self.generate, pb.GenerateRequest),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)


def served(body: Callable[[Service, str], Awaitable[None]], *, embeds: bool = False) -> None:
    async def main() -> None:
        service = Service()
        service.embeds = embeds
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((service.handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with asyncio.timeout(60):
                await body(service, f"grpc://127.0.0.1:{port}")
        finally:
            await server.stop(0)

    asyncio.run(main())


@asynccontextmanager
async def connected(url: str, **settings: Any) -> AsyncIterator[Backend]:
    backend = remote(VllmSettings(endpoint=url, start_timeout=5.0, **settings))
    await backend.start()
    try:
        yield backend
    finally:
        await backend.aclose()


def asked(**sampling: Any) -> GenerateRequest:
    given = {"max_tokens": 4, "temperature": 0.0} | sampling
    return GenerateRequest(prompt=(7, 8, 9), sampling=SamplingParams(**given))


def test_an_answer_and_its_last_piece_once() -> None:
    async def body(service: Service, url: str) -> None:
        async with connected(url) as backend:
            answer = await complete(backend, asked())
            assert answer.choices[0].token_ids == (10, 11, 12, 13)
            assert answer.choices[0].text == await backend.detokenize((10, 11, 12, 13))
            assert answer.usage.prompt_tokens == 3
            assert backend.info.context_length == 2048
            assert backend.info.description == "tiny on vLLM 0.32.0"

    served(body)


def test_the_text_of_a_stop_token_is_no_part_of_the_answer() -> None:
    async def body(service: Service, url: str) -> None:
        async with connected(url) as backend:
            answer = (await complete(backend, asked(stop_token_ids=(12,)))).choices[0]
            assert answer.token_ids == (10, 11, 12)
            assert answer.text == await backend.detokenize((10, 11))
            assert (answer.finish_reason, answer.matched) == ("stop", 12)

    served(body)


def test_what_the_service_cannot_carry_is_refused() -> None:
    async def body(service: Service, url: str) -> None:
        async with connected(url) as backend:
            assert backend.info.capabilities.request_fields <= honoured("grpc")
            with pytest.raises(UnsupportedField) as caught:
                await complete(backend, GenerateRequest(prompt=(1,), tenant="a"))
            assert caught.value.field == "tenant"
            with pytest.raises(UnsupportedField, match="HTTP"):
                await backend.load_adapter("a", "/a")
            assert not backend.info.capabilities.adapters
            assert not service.requests
        async with connected(url, prefixes="shared") as backend:
            sampling = SamplingParams(max_tokens=1)
            await complete(backend, GenerateRequest(prompt=(1,), tenant="a", sampling=sampling))
        async with connected(url, structured="guidance") as backend:
            assert backend.info.capabilities.request_fields == honoured("grpc")
            with pytest.raises(AdapterNotFound):
                await complete(
                    backend, GenerateRequest(prompt=(1,), adapters=(AdapterWeight(name="a"),))
                )

    served(body)


def test_statuses_and_repetition() -> None:
    code = grpc.StatusCode

    async def body(service: Service, url: str) -> None:
        async with connected(url, retries=1) as backend:
            service.codes = [code.UNAVAILABLE]
            await complete(backend, asked())
            service.codes = [code.INTERNAL] * 2
            with pytest.raises(BackendFailed):
                await complete(backend, asked())
            service.codes = [code.RESOURCE_EXHAUSTED] * 2
            with pytest.raises(Overloaded):
                await complete(backend, asked())
            before = len(service.requests)
            service.codes = [code.INVALID_ARGUMENT]
            with pytest.raises(InvalidRequest):
                await complete(backend, asked())
            assert len(service.requests) == before + 1
            service.die_at = 2
            with pytest.raises(BackendFailed):
                await complete(backend, asked())
            assert len(service.requests) == before + 2

    served(body)


def test_cancelling_reaches_the_service() -> None:
    async def body(service: Service, url: str) -> None:
        async def at_rest() -> bool:
            return service.running == 0

        service.pause = 0.001
        async with connected(url) as backend:
            events = await begin(backend, asked(max_tokens=2000))
            assert service.running == 1
            await events.aclose()
            await eventually(at_rest, what="the service was told")

    served(body)


def test_embeddings_may_take_as_long_as_other_work() -> None:
    async def body(service: Service, url: str) -> None:
        async with connected(url, stall_timeout=5000.0) as backend:
            answer = await backend.embed(EmbedRequest(inputs=((1, 2), (3,))))
            assert answer.embeddings == ((0.6, 0.8), (0.6, 0.8))
            assert answer.usage.prompt_tokens == 3
            assert all(limit > 1000 for limit in service.limits)

    served(body, embeds=True)


def test_one_input_that_cannot_be_embedded_ends_the_others() -> None:
    async def body(service: Service, url: str) -> None:
        async def at_rest() -> bool:
            return service.running == 0

        async with connected(url) as backend:
            with pytest.raises(InvalidRequest, match="as asked"):
                await backend.embed(EmbedRequest(inputs=((7,), (13,), (7,))))
            await eventually(at_rest, what="the service was told")

    served(body, embeds=True)


@pytest.mark.parametrize("what", ["digest", "no archive", "empty"])
def test_tokenizer_files_that_cannot_be_used(what: str) -> None:
    async def body(service: Service, url: str) -> None:
        if what == "digest":
            service.digest = "0" * 64
        else:
            service.archive = b"x" * 1000 if what == "no archive" else b""
            service.digest = ""
        with pytest.raises(ModelLoadFailed, match="setting tokenizer"):
            async with connected(url):
                pass
        async with connected(url, tokenizer=str(path("hf"))) as backend:
            await complete(backend, asked())

    served(body)


def test_nobody_is_there() -> None:
    """An error that is kept keeps neither the channel nor grpcio's polling thread."""

    async def main() -> None:
        before = set(threading.enumerate())
        backend = remote(VllmSettings(endpoint="grpc://127.0.0.1:9", start_timeout=0.3))
        with pytest.raises(ModelLoadFailed) as caught:
            await backend.start()
        await backend.aclose()
        left = set(threading.enumerate()) - before
        assert not [thread for thread in left if not thread.name.startswith("asyncio_")]
        assert caught.value.field == "endpoint"

    asyncio.run(main())


def test_a_last_message_with_more_than_was_seen_gives_the_rest() -> None:
    """Were a chunk ever left out, its tokens would still come."""
    reader = Reader()
    first = pb.GenerateResponse(chunk=pb.Chunk(token_ids=[1], completion_tokens=1))
    last = pb.GenerateResponse(
        complete=pb.Complete(output_ids=[1, 2, 3], completion_tokens=3, finish_reason="length")
    )
    pieces = [piece for message in (first, last) for piece in reader.pieces(message)]
    assert [tuple(piece.token_ids) for piece in pieces] == [(1,), (2, 3)]
