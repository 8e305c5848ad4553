"""Run as a script: forks clients and workers that are there to be killed.

`victims.py SCHEME URL` reads `client SEED` or `worker` from standard input, forks, and answers with
the process id. Everything is imported before, so that a victim costs milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from contextlib import aclosing

from themis_core.messages import GenerateRequest
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_shm_transport.transport import SocketTransport

TEXT = "to be or not to be that is the question " * 8
LONG = GenerateRequest(prompt=TEXT * 40)


def echo() -> EchoBackend:
    """Slow enough to be killed in the middle of an answer."""
    return EchoBackend(EchoSettings(delay=0.0005, context=100_000))


async def be_a_client(scheme: str, url: str, seed: int) -> None:
    """Ask for this and that, for ever."""
    remote = SocketTransport(scheme).connect(url)
    await remote.start()
    choice = random.Random(seed)

    async def ask() -> None:
        while True:
            request = choice.choice([GenerateRequest(prompt=TEXT), LONG])
            async with aclosing(remote.generate(request)) as events:
                async for _ in events:
                    if choice.random() < 0.02:
                        break

    await asyncio.gather(*(ask() for _ in range(4)))


async def be_a_worker(scheme: str, url: str) -> None:
    """Serve an echo, for ever."""
    backend = echo()
    await backend.start()
    await SocketTransport(scheme).serve(backend, url)
    await asyncio.Event().wait()


def main(scheme: str, url: str) -> None:
    """Fork on demand."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel buries them.
    for line in sys.stdin:
        kind, *seed = line.split()
        child = os.fork()
        if child == 0:
            if kind == "client":
                asyncio.run(be_a_client(scheme, url, int(seed[0])))
            else:
                asyncio.run(be_a_worker(scheme, url))
            os._exit(1)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
