"""One server's connections: requests, answers, streams of events. aiohttp's errors end here."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from themis_core.errors import BackendClosed, ConfigInvalid, InvalidRequest
from themis_vllm_remote.http.address import HttpAddress
from themis_vllm_remote.http.failures import failure, lost, translated

_KEEP = 3.0  # Seconds; the server closes idle connections after 5.
_LARGEST_EVENT = 64 << 20
_DONE = b"[DONE]"


@dataclass(frozen=True)
class ClientOptions:
    """Timeouts in seconds; PEM files for TLS."""

    api_key: str = ""
    connect_timeout: float = 5.0
    stall_timeout: float = 300.0
    connections: int = 1024
    ca: str = ""
    certificate: str = ""
    key: str = ""


class HttpClient:
    """A pool of connections that are kept alive. Made within an event loop, by `open`."""

    def __init__(self, address: HttpAddress, options: ClientOptions) -> None:
        self.address = address
        self._options = options
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Raises `ConfigInvalid` for certificates that cannot be read."""
        options, headers = self._options, {}
        if options.api_key:
            headers["Authorization"] = f"Bearer {options.api_key}"
        connector: aiohttp.BaseConnector
        if self.address.socket:
            connector = aiohttp.UnixConnector(
                self.address.socket, limit=options.connections, keepalive_timeout=_KEEP
            )
        else:
            connector = aiohttp.TCPConnector(
                limit=options.connections, keepalive_timeout=_KEEP, ssl=_tls(options)
            )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=options.connect_timeout,
                sock_read=options.stall_timeout,
            ),
        )

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of an answer, whatever they are. Raises `BackendFailed`."""
        with translated(self.address.url):
            async with self._call(method, path, body) as response:
                return response.status, await response.read()

    async def get(self, path: str, kind: type[Any]) -> Any:
        """The JSON of an answer, as a struct. Raises what its status says."""
        return self._read(*await self.ask("GET", path), kind)

    async def post(self, path: str, body: Any, kind: type[Any]) -> Any:
        """The same for a body that is sent."""
        return self._read(*await self.ask("POST", path, body), kind)

    async def stream(self, path: str, body: Any) -> AsyncGenerator[list[bytes], None]:
        """The data of server-sent events, as many at once as came. Ends after `[DONE]`.

        Raises what the status says, and `BackendFailed` for a stream that is cut off.
        """
        where = self.address.url
        with translated(where):
            async with self._call("POST", path, body) as response:
                if response.status != 200:
                    raise failure(response.status, await response.read(), where)
                rest = b""
                async for data in response.content.iter_any():
                    rest += data
                    if b"\r" in rest:
                        rest = rest.replace(b"\r\n", b"\n")
                    *complete, rest = rest.split(b"\n\n")
                    if len(rest) > _LARGEST_EVENT:
                        raise lost(where, "an event of the stream does not end")
                    found = [event[5:].strip() for event in complete if event[:5] == b"data:"]
                    if found and found[-1] == _DONE:
                        if len(found) > 1:
                            yield found[:-1]
                        # To its end, so that the connection can be used again.
                        await response.content.readany()
                        return
                    if found:
                        yield found
        raise lost(where, "the stream was cut off")

    async def aclose(self) -> None:
        """Close all connections; twice is fine."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _call(self, method: str, path: str, body: Any) -> Any:
        if self._session is None:
            raise BackendClosed("The backend is not running.", plugin="vllm")
        try:
            data = None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                "The request holds a lone surrogate, so it is not valid Unicode.",
                field="prompt",
                plugin="vllm",
            ) from error
        headers = {"Content-Type": "application/json"} if data is not None else None
        return self._session.request(
            method, self.address.base + path, data=data, headers=headers, allow_redirects=False
        )

    def _read(self, status: int, body: bytes, kind: type[Any]) -> Any:
        if status != 200:
            raise failure(status, body, self.address.url)
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise lost(self.address.url, f"its answer is none ({error})") from error


def _tls(options: ClientOptions) -> ssl.SSLContext | bool:
    if not (options.ca or options.certificate):
        return True
    try:
        context = ssl.create_default_context(cafile=options.ca or None)
        if options.certificate:
            context.load_cert_chain(options.certificate, options.key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(
            f"The certificates cannot be used: {error}.", field="ca", plugin="vllm"
        ) from error
    return context
