"""HTTP over a Unix socket and over TLS: the same answers, and strangers are kept out."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from themis_core.errors import ConfigInvalid, ModelLoadFailed
from themis_core.messages import GenerateRequest, SamplingParams
from themis_testkit.certificates import Certificates, make_certificates
from themis_testkit.conformance.base import complete

from .conftest import connected
from .upstream import Upstream

ASKED = GenerateRequest(prompt=(7, 8), sampling=SamplingParams(max_tokens=3, temperature=0.0))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def serving(upstream: Upstream, body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await upstream.start()
            try:
                await body()
            finally:
                await upstream.stop()

    asyncio.run(main())


def secured(certificates: Certificates, *, mutual: bool = False) -> Upstream:
    upstream = Upstream()
    upstream.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own = certificates.server
    upstream.tls.load_cert_chain(own, own.with_suffix(".key"))
    if mutual:
        upstream.tls.load_verify_locations(certificates.ca)
        upstream.tls.verify_mode = ssl.CERT_REQUIRED
    return upstream


def of_client(certificates: Certificates, who: Path) -> dict[str, str]:
    own = {"certificate": str(who), "key": str(who.with_suffix(".key"))}
    return {"ca": str(certificates.ca), **own}


def test_http_on_a_unix_socket(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.socket = str(tmp_path / "vllm server.sock")

    async def body() -> None:
        async with connected(upstream) as backend:
            answer = await complete(backend, ASKED)
            assert answer.choices[0].token_ids == (9, 10, 11)

    serving(upstream, body)


def test_a_unix_socket_where_nobody_listens(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.socket = str(tmp_path / "absent.sock")

    async def main() -> None:
        with pytest.raises(ModelLoadFailed, match=r"absent\.sock"):
            async with connected(upstream, start_timeout=0.2):
                pass

    asyncio.run(main())


def test_https_with_an_authority_of_ones_own(certificates: Certificates) -> None:
    upstream = secured(certificates)

    async def body() -> None:
        async with connected(upstream, ca=str(certificates.ca)) as backend:
            assert (await complete(backend, ASKED)).choices[0].token_ids == (9, 10, 11)

    serving(upstream, body)


def test_a_server_that_nobody_vouches_for_is_refused(certificates: Certificates) -> None:
    upstream = secured(certificates)

    async def body() -> None:
        with pytest.raises(ModelLoadFailed, match="certificate"):
            async with connected(upstream, start_timeout=0.2):
                pass
        assert upstream.bodies == []

    serving(upstream, body)


def test_a_certificate_of_the_client(certificates: Certificates) -> None:
    upstream = secured(certificates, mutual=True)

    async def body() -> None:
        async with connected(upstream, **of_client(certificates, certificates.client)) as backend:
            assert (await complete(backend, ASKED)).choices[0].token_ids == (9, 10, 11)
        for settings in (
            {"ca": str(certificates.ca)},
            of_client(certificates, certificates.stranger),
        ):
            with pytest.raises(ModelLoadFailed):
                async with connected(upstream, start_timeout=0.2, **settings):
                    pass

    serving(upstream, body)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing of the kind")

    async def main() -> None:
        upstream = Upstream()
        upstream.tls = ssl.create_default_context()  # For its URL; it is never started.
        for settings in ({"ca": str(broken)}, {"certificate": str(tmp_path / "absent.pem")}):
            with pytest.raises(ConfigInvalid, match="certificates"):
                async with connected(upstream, **settings):
                    pass

    asyncio.run(main())
