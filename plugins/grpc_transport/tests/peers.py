"""Run as a script, to be killed or stopped.

`peers.py URL` is a server that prints its URL; `peers.py client URL` asks one for a long answer,
reads it, and prints a line when it has begun.
"""

from __future__ import annotations

import asyncio
import sys

from themis_core.messages import GenerateRequest
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_grpc_transport.transport import GrpcTransport


async def serve(url: str) -> None:
    backend = EchoBackend(EchoSettings(delay=0.002, context=100_000))
    await backend.start()
    server = await GrpcTransport("grpc").serve(backend, url)
    say(server.url)
    await asyncio.Event().wait()


async def ask(url: str) -> None:
    backend = GrpcTransport("grpc").connect(url)
    await backend.start()
    events = backend.generate(GenerateRequest(prompt="to be or not to be " * 4000))
    await anext(events)
    say("asked")
    async for _ in events:
        pass


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(ask(sys.argv[2]) if sys.argv[1] == "client" else serve(sys.argv[1]))
