"""`grpcs`: who is let in, who is not, and that both are told why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import pytest

from themis_core.errors import ConfigInvalid, ModelLoadFailed
from themis_core.messages import Done, GenerateRequest
from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_grpc_transport.transport import GrpcTransport


class Certificates(Protocol):
    """As conftest makes them."""

    ca: Path
    server: Path
    client: Path
    stranger: Path

    def of_server(self, *, mutual: bool = True) -> str: ...
    def of_client(self, who: Path | None) -> str: ...


def with_server(query: str, check: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    """Run a check against a server with these certificates; it gets the address."""

    async def main() -> None:
        async with asyncio.timeout(60):
            backend = EchoBackend(EchoSettings())
            await backend.start()
            server = await GrpcTransport("grpcs").serve(backend, f"grpcs://127.0.0.1:0{query}")
            assert server.url.startswith("grpcs://127.0.0.1:")
            try:
                await check(server.url.removeprefix("grpcs://"))
            finally:
                await server.aclose()
                await backend.aclose()
            left: Any = asyncio.all_tasks() - {asyncio.current_task()}
            if left:  # gRPC ends one of its own a moment after its call.
                left = (await asyncio.wait(left, timeout=10))[1]
            assert not left, left

    asyncio.run(main())


async def answers(url: str) -> bool:
    remote = GrpcTransport(url.partition(":")[0]).connect(url)
    try:
        await remote.start()
        events = [event async for event in remote.generate(GenerateRequest(prompt="hello"))]
        return isinstance(events[-1], Done)
    finally:
        await remote.aclose()


def test_a_client_with_the_right_certificate(certificates: Certificates, query: str) -> None:
    async def check(address: str) -> None:
        own = certificates.of_client(certificates.client) + query.replace("?", "&")
        assert await answers(f"grpcs://{address}{own}")
        named = f"{own}&server_name=localhost"
        assert await answers(f"grpcs://{address}{named}")

    with_server(certificates.of_server(), check)


def test_tls_without_client_certificates(certificates: Certificates) -> None:
    async def check(address: str) -> None:
        assert await answers(f"grpcs://{address}{certificates.of_client(None)}")

    with_server(certificates.of_server(mutual=False), check)


@pytest.mark.parametrize("who", ["stranger", None])
def test_a_wrong_or_no_certificate_is_refused(
    certificates: Certificates, who: str | None, query: str
) -> None:
    async def check(address: str) -> None:
        wrong = certificates.of_client(getattr(certificates, who) if who else None)
        with pytest.raises(ModelLoadFailed, match=r"grpcs://127\.0\.0\.1"):
            await answers(f"grpcs://{address}{wrong}{query.replace('?', '&')}")
        assert await answers(f"grpcs://{address}{certificates.of_client(certificates.client)}")

    with_server(certificates.of_server(), check)


def test_plaintext_is_refused(certificates: Certificates, query: str) -> None:
    async def check(address: str) -> None:
        with pytest.raises(ModelLoadFailed, match=r"grpc://127\.0\.0\.1.*grpcs://"):
            await answers(f"grpc://{address}{query}")

    with_server(certificates.of_server(), check)


def test_a_server_of_another_authority_is_refused(certificates: Certificates) -> None:
    async def check(address: str) -> None:
        other = certificates.ca.with_name("other.pem")
        with pytest.raises(ModelLoadFailed, match=r"(?i)certificate"):
            await answers(f"grpcs://{address}?ca={other}")
        wrong = f"{certificates.of_client(None)}&server_name=elsewhere"
        with pytest.raises(ModelLoadFailed, match=r"(?i)elsewhere|hostname|peer name"):
            await answers(f"grpcs://{address}{wrong}")

    with_server(certificates.of_server(mutual=False), check)


def test_a_server_without_tls_is_refused(certificates: Certificates) -> None:
    async def main() -> None:
        backend = EchoBackend(EchoSettings())
        await backend.start()
        server = await GrpcTransport("grpc").serve(backend, "grpc://127.0.0.1:0")
        try:
            url = server.url.replace("grpc:", "grpcs:") + certificates.of_client(None)
            with pytest.raises(ModelLoadFailed):
                await answers(url)
        finally:
            await server.aclose()
            await backend.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "a certificate and its key are needed"),
        ("?certificate=/missing.pem&key=/missing.key", "/missing"),
        ("?certificate={file}&key={file}", "not in PEM"),
    ],
)
def test_a_server_without_usable_files_does_not_start(tmp_path: Path, query: str, why: str) -> None:
    (tmp_path / "file").write_text("no certificate")

    async def main() -> None:
        backend = EchoBackend(EchoSettings())
        await backend.start()
        url = "grpcs://127.0.0.1:0" + query.format(file=tmp_path / "file")
        with pytest.raises(ConfigInvalid, match=why):
            await GrpcTransport("grpcs").serve(backend, url)
        await backend.aclose()

    asyncio.run(main())
