"""Measuring transports: a backend that computes nothing, hosted in another process, and its client.

What is left is what a transport costs: encoding, copying, waking, and the queues on both sides.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import NoReturn

import msgspec

from themis_core.contracts import Backend, Transport
from themis_core.errors import ModelLoadFailed, UnsupportedField
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    Capabilities,
    ChatMessage,
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    SamplingParams,
    Started,
    Usage,
)
from themis_core.plugins import Registry
from themis_core.protocol import Matrix
from themis_core.worker.host import host, new_event_loop
from themis_core.worker.making import transport_for

PROMPT_IDS = tuple(range(1000, 1512))
ANSWER_IDS = tuple(range(2000, 2100))
MATRIX_ROWS, MATRIX_COLUMNS = 4096, 1024  # 16 MiB of float32
STREAMS = 32


class BenchBackend:
    """Answers at once. The request's `tenant` says how:

    `unary`: all tokens in one delta; `burst`: one by one without a pause; `step`: one for each
    turn of the event loop, as an engine gives them to all its sequences. A text to embed is
    `place` for a matrix in the memory that the transport lends, `copy` for one of its own.
    """

    def __init__(self) -> None:
        self._own = Matrix(memoryview(bytearray(4 * MATRIX_ROWS * MATRIX_COLUMNS)), MATRIX_COLUMNS)

    @property
    def info(self) -> ModelInfo:
        """Takes token ids."""
        fields = frozenset({"prompt_token_ids"})
        return ModelInfo(backend="bench", capabilities=Capabilities(request_fields=fields))

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """So many tokens as are asked for."""
        count = request.sampling.max_tokens or 1
        yield Started(prompt_tokens=len(request.prompt or ()))
        if request.tenant == "unary":
            yield Delta(text="x" * count, token_ids=ANSWER_IDS[:count])
        else:
            for token in range(count):
                if request.tenant == "step":
                    await asyncio.sleep(0)
                yield Delta(text=" token", token_ids=(token,))
        yield Finished(reason="length")
        yield Done(usage=Usage(completion_tokens=count))

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """A matrix of 16 MiB."""
        matrix = self._own
        if request.inputs[0] == "place":
            matrix = Matrix.empty(MATRIX_ROWS, MATRIX_COLUMNS)
        return EmbedResponse(embeddings=matrix, usage=Usage())  # type: ignore[arg-type]

    async def tokenize(self, prompt: str | tuple[ChatMessage, ...]) -> tuple[int, ...]:
        """No tokenizer."""
        _refuse()

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """No tokenizer."""
        _refuse()

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        """No adapters."""
        _refuse()

    async def unload_adapter(self, name: str) -> None:
        """No adapters."""
        _refuse()

    async def adapters(self) -> tuple[AdapterWeight, ...]:
        """None."""
        return ()

    async def stats(self) -> BackendStats:
        """`steps` is the process's CPU time in microseconds."""
        return BackendStats(steps=int(time.process_time() * 1e6))

    async def aclose(self) -> None:
        """Nothing to free."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. Microseconds, or events per second; CPU of client and worker together."""

    unary_p50: float
    unary_p99: float
    burst_per_token: float
    streams_per_second: float
    cpu_per_token: float
    matrix_copied: float
    matrix_in_place: float


@asynccontextmanager
async def worker(
    transport: Transport, url: str, module: str = "themis_core.worker.bench"
) -> AsyncIterator[Backend]:
    """A client of a bench worker in another process, which runs `module`."""
    process = await asyncio.to_thread(_spawn, module, url)
    try:
        assert process.stdout is not None
        where = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        if not where:
            raise ModelLoadFailed(f"The bench worker at {url} did not start; its error is above.")
        backend = transport.connect(where)
        try:
            await backend.start()
            yield backend
        finally:
            await backend.aclose()
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.to_thread(process.wait)
        assert process.stdout is not None
        process.stdout.close()


def _spawn(module: str, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, url]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def measure(backend: Backend, rounds: int = 2000) -> Figures:
    """All figures of one transport; `rounds` unary calls, and the others in proportion."""
    await unary(backend, rounds // 10 + 1)
    latencies = sorted(await unary(backend, rounds))
    burst = [await _burst(backend) for _ in range(rounds // 10 + 1)]
    await streams(backend, 20)
    before = await _cpu(backend)
    began, tokens = time.perf_counter(), max(20, rounds // 4)
    await streams(backend, tokens)
    seconds = time.perf_counter() - began
    cpu = await _cpu(backend) - before
    copied = [await matrix(backend, "copy") for _ in range(rounds // 100 + 3)]
    placed = [await matrix(backend, "place") for _ in range(rounds // 100 + 3)]
    return Figures(
        unary_p50=1e6 * latencies[len(latencies) // 2],
        unary_p99=1e6 * latencies[len(latencies) * 99 // 100],
        burst_per_token=1e6 * _median(burst) / 100,
        streams_per_second=STREAMS * tokens / seconds,
        cpu_per_token=1e6 * cpu / (STREAMS * tokens),
        matrix_copied=1e6 * _median(copied[1:]),
        matrix_in_place=1e6 * _median(placed[1:]),
    )


async def unary(backend: Backend, rounds: int) -> list[float]:
    """Seconds for each of so many requests: 512 token ids there, 100 back in one delta."""
    found = []
    for _ in range(rounds):
        request = _request("unary", len(ANSWER_IDS))
        began = time.perf_counter()
        await _read(backend, request)
        found.append(time.perf_counter() - began)
    return found


async def streams(backend: Backend, tokens: int, mode: str = "step") -> None:
    """32 streams at once, of so many tokens each."""
    requests = [_request(mode, tokens) for _ in range(STREAMS)]
    await asyncio.gather(*(_read(backend, request) for request in requests))


async def stream(backend: Backend, tokens: int, mode: str) -> None:
    """One stream of so many tokens."""
    await _read(backend, _request(mode, tokens))


async def matrix(backend: Backend, how: str) -> float:
    """Seconds until a matrix of 16 MiB is here and one number of each page has been read."""
    began = time.perf_counter()
    response = await backend.embed(EmbedRequest(inputs=(how,)))
    found: object = response.embeddings
    memory = found.memory if isinstance(found, Matrix) else memoryview(b"")
    checksum = sum(memory[::4096])
    seconds = time.perf_counter() - began
    if len(memory) != 4 * MATRIX_ROWS * MATRIX_COLUMNS or checksum < 0:
        raise AssertionError("the matrix did not come whole")
    return seconds


async def _burst(backend: Backend) -> float:
    began = time.perf_counter()
    await _read(backend, _request("burst", 100))
    return time.perf_counter() - began


async def _read(backend: Backend, request: GenerateRequest) -> None:
    async with aclosing(backend.generate(request)) as events:
        async for _ in events:
            pass


async def _cpu(backend: Backend) -> float:
    """CPU seconds of this process and the worker's."""
    return time.process_time() + (await backend.stats()).steps / 1e6


def _request(mode: str, tokens: int) -> GenerateRequest:
    params = SamplingParams(max_tokens=tokens)
    return GenerateRequest(prompt=PROMPT_IDS, tenant=mode, sampling=params)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _refuse() -> NoReturn:
    raise UnsupportedField("The bench backend has neither tokenizer nor adapters.")


async def serve_bench(transport: Transport, url: str) -> None:
    """Be the worker: serve until standard input ends, having written the URL to standard output."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stop.set)

    def ready(where: str) -> None:
        os.write(1, f"{where}\n".encode())

    await host(BenchBackend(), transport, url, stop, ready)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve_bench(transport_for(Registry(), sys.argv[1]), sys.argv[1]))
