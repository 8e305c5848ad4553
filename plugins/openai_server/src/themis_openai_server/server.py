"""The front door: the application behind uvicorn, in the event loop that is already running."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from themis_openai_server.app import App
from themis_openai_server.ports import RuntimePort
from themis_openai_server.settings import OpenAISettings
from themis_openai_server.sockets import BACKLOG, bind, url_of

# Longer than the pools of clients and proxies keep idle connections, so that they close first and
# never send into a connection that is being closed.
_KEEP_ALIVE_S = 75
_LAST_WORDS_S = 1.0


def create(settings: OpenAISettings, runtime: RuntimePort, host: str, port: int) -> OpenAIServer:
    """The factory that the plugin names."""
    return OpenAIServer(settings, runtime, host, port)


class OpenAIServer:
    """A `themis_core.hooks.FrontDoor`."""

    def __init__(
        self, settings: OpenAISettings, runtime: RuntimePort, host: str, port: int
    ) -> None:
        self._app = App(settings, runtime)
        self._grace = settings.shutdown_grace
        self._host = host
        self._port = port
        self._url = ""
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens, with the real port. Empty before `start`."""
        return self._url

    async def start(self) -> None:
        """Bind and begin to accept. Raises `ConfigInvalid` if the address cannot be bound."""
        if self._serving is not None:
            raise RuntimeError("the server has been started already")
        sockets = await bind(self._host, self._port)
        self._url = url_of(self._host, sockets[0])
        server = self._server = _Server(
            uvicorn.Config(
                self._app,
                interface="asgi3",
                http="auto",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=self._grace,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets), name="themis openai door")
        # Also if it fails: nobody may wait for ever.
        self._serving.add_done_callback(lambda _: server.accepting.set())
        await server.accepting.wait()
        if self._serving.done():
            await self._serving

    async def wait(self) -> None:
        """Return when the server has stopped by itself. Cancelling it leaves the server running."""
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def aclose(self) -> None:
        """Stop accepting, let running requests end for a while, then cancel them. Twice is fine."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await asyncio.shield(self._serving)
        await self._server.end_requests()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers (the command line has them), and with a sure end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever owns the process."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also say when connections are accepted."""
        await super().startup(sockets)
        self.accepting.set()

    async def end_requests(self) -> None:
        """Wait for the requests that were cancelled, and cut what is still connected."""
        tasks = self.server_state.tasks
        if tasks:
            # They tell their clients why; but a client that does not read cannot be waited for.
            await asyncio.wait(list(tasks), timeout=_LAST_WORDS_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        while tasks:
            await asyncio.wait(list(tasks))
