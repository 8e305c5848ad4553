"""The ways to vLLM that are compared, and bare clients beside them. Each asks for token ids."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import grpc.aio

import themis_tiny_model
from themis_core.contracts import Backend
from themis_core.messages import Delta, GenerateRequest, SamplingParams
from themis_vllm_remote.create import engine, remote
from themis_vllm_remote.grpc import vllm_pb2 as pb
from themis_vllm_remote.settings import EngineSettings, VllmSettings

MODEL = str(themis_tiny_model.path("hf"))
PROMPT = (1, 44, 310, 77)
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_PLUGINS": "",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
KV_BYTES = 64 << 20
ENGINE: dict[str, Any] = {
    "path": MODEL,
    "dtype": "float32",
    "context": 512,
    "parallel": 8,
    "engine": {
        "enforce_eager": True,
        "max_num_batched_tokens": 512,
        "kv_cache_memory_bytes": KV_BYTES,
    },
}
_FLAGS = [
    *("--served-model-name", "tiny", "--host", "127.0.0.1", "--dtype", "float32"),
    *("--enforce-eager", "--generation-config", "vllm", "--enable-scale-out"),
    *("--max-model-len", "512", "--max-num-seqs", "8", "--max-num-batched-tokens", "512"),
    *("--kv-cache-memory-bytes", str(KV_BYTES)),
]


class Client(Protocol):
    """One way: an answer of so many tokens, read to its end. Returns their number."""

    async def answer(self, tokens: int) -> int: ...


class OfBackend:
    """Any backend of Themis."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def answer(self, tokens: int) -> int:
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        request = GenerateRequest(prompt=PROMPT, sampling=params)
        count = 0
        async for event in self._backend.generate(request):
            if isinstance(event, Delta):
                count += len(event.token_ids)
        return count


class BareEngine:
    """`AsyncLLM` in this process, as vLLM documents it."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._numbers = itertools.count()

    async def answer(self, tokens: int) -> int:
        from vllm.sampling_params import RequestOutputKind
        from vllm.sampling_params import SamplingParams as Params

        params = Params(
            output_kind=RequestOutputKind.DELTA,
            detokenize=False,
            max_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
        )
        count = 0
        prompt = {"prompt_token_ids": list(PROMPT)}
        async for output in self._llm.generate(prompt, params, f"bare-{next(self._numbers)}"):
            count += len(output.outputs[0].token_ids)
        return count


class BareHttp:
    """aiohttp on `/v1/completions`, and nothing but `json.loads` on what comes."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/v1/completions"

    async def answer(self, tokens: int) -> int:
        body = {
            "prompt": list(PROMPT),
            "max_tokens": tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        count = 0
        async with self._session.post(self._url, json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        count += len(choice["token_ids"] or ())
        return count


class BareGrpc:
    """grpcio on `Generate`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._generate: Any = channel.unary_stream(
            "/vllm.grpc.engine.VllmEngine/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        self._numbers = itertools.count()

    async def answer(self, tokens: int) -> int:
        params = pb.SamplingParams(
            temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_tokens=tokens, n=1
        )
        params.ignore_eos = True
        request = pb.GenerateRequest(
            request_id=f"bare-{next(self._numbers)}",
            tokenized=pb.Tokenized(input_ids=PROMPT),
            sampling_params=params,
            stream=True,
        )
        count = 0
        async for response in self._generate(request):
            # The last message repeats the last chunk, where there was one.
            count += len(response.chunk.token_ids)
            count = count or len(response.complete.output_ids)
        return count


@asynccontextmanager
async def of_settings(**settings: Any) -> AsyncIterator[OfBackend]:
    """The backend `vllm`."""
    async with _started(remote(VllmSettings(**settings))) as backend:
        yield OfBackend(backend)


@asynccontextmanager
async def bare_http(url: str) -> AsyncIterator[BareHttp]:
    """An aiohttp session."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield BareHttp(session, url)


@asynccontextmanager
async def bare_grpc(target: str) -> AsyncIterator[BareGrpc]:
    """A channel."""
    async with grpc.aio.insecure_channel(target) as channel:
        yield BareGrpc(channel)


@asynccontextmanager
async def in_process() -> AsyncIterator[tuple[BareEngine, OfBackend]]:
    """An engine in this process, bare and as `vllm_engine`."""
    backend = engine(EngineSettings(**ENGINE))
    async with _started(backend):
        llm = backend._engine._llm  # type: ignore[attr-defined]
        yield BareEngine(llm), OfBackend(backend)


@asynccontextmanager
async def _started(backend: Backend) -> AsyncIterator[Backend]:
    await backend.start()
    try:
        yield backend
    finally:
        await backend.aclose()


@asynccontextmanager
async def process(
    command: list[str], ready: Callable[[], Awaitable[bool]], log: Path
) -> AsyncIterator[None]:
    """A program that runs meanwhile. Raises `RuntimeError` if it ends before it is ready."""
    with log.open("wb") as file:
        running = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | QUIET,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    end = time.monotonic() + 180
    try:
        while not await ready():
            if running.returncode is not None or time.monotonic() > end:
                said = log.read_text()[-2000:]  # noqa: ASYNC240 - nothing else runs yet.
                raise RuntimeError(f"{command[0]} did not start: {said}")
            await asyncio.sleep(0.1)
        yield
    finally:
        if running.returncode is None:
            running.terminate()
        await running.wait()


def serve_command(port: int, *more: str) -> list[str]:
    """`vllm serve` on the bundled model."""
    program = str(Path(sys.executable).with_name("vllm"))
    return [program, "serve", MODEL, "--port", str(port), *_FLAGS, *more]


async def listening(port: int) -> bool:
    """Whether somebody does there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """The fast fake server; its URL."""
    program = [sys.executable, "-m", "benchmarks.vllm_upstream"]
    running = await asyncio.create_subprocess_exec(
        *program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await running.stdout.readline())}"
    finally:
        running.stdin.close()
        await running.wait()
