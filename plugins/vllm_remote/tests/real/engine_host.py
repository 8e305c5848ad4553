"""A process with one `AsyncLLM` that serves any number of fresh backends on it, over transports.

An engine takes twenty seconds to start, and a conformance suite makes a hundred backends. Lines
of JSON come in, {"new": URL} and {"close": URL}, and each is answered by one: an error, or "".
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from themis_core.contracts import BackendServer
from themis_core.plugins import Registry
from themis_core.worker.making import transport_for
from themis_vllm_remote.backend import VllmBackend
from themis_vllm_remote.door import Facts
from themis_vllm_remote.engine.backend import EngineWorkerBackend
from themis_vllm_remote.engine.door import EngineDoor
from themis_vllm_remote.settings import EngineSettings


class SharedDoor(EngineDoor):
    """A door on an engine that stays when it is closed; its adapters go."""

    def __init__(self, settings: EngineSettings, owner: EngineDoor, facts: Facts) -> None:
        super().__init__(settings)
        self._owner = owner
        self._facts = facts

    async def open(self) -> Facts:
        self._llm, self._vllm = self._owner._llm, self._owner._vllm
        self._numbers = self._owner._numbers
        return self._facts

    async def aclose(self) -> None:
        for name in list(self._adapters) if self._llm is not None else ():
            await self.unload_adapter(name)
        self._llm = None


async def main(settings: EngineSettings) -> None:
    owner = EngineDoor(settings)
    facts = await owner.open()
    registry = Registry()
    served: dict[str, tuple[VllmBackend, BackendServer]] = {}

    async def obey(command: dict[str, str]) -> None:
        if "new" in command:
            url = command["new"]
            backend = EngineWorkerBackend(SharedDoor(settings, owner, facts), settings.path)
            await backend.start()
            served[url] = backend, await transport_for(registry, url).serve(backend, url)
        else:
            hosted, server = served.pop(command["close"])
            await server.aclose()
            await hosted.aclose()

    loop = asyncio.get_running_loop()
    say("")
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            await obey(json.loads(line))
            say("")
        except Exception as error:  # noqa: BLE001 - the test that asked is told.
            say(repr(error))
    await owner.aclose()


def say(what: Any) -> None:
    sys.stdout.write(json.dumps({"error": what}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(EngineSettings(**json.loads(sys.argv[1]))))
