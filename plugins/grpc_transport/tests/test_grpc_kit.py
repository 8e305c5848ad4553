"""The testkit's suite for transports, over the worker protocol and over calls by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from themis_core.contracts import Backend, Transport
from themis_grpc_transport.transport import GrpcTransport
from themis_testkit import TransportConformance
from themis_testkit.conformance.transport import TransportFactory


class Asking(GrpcTransport):
    """Its clients add to the URL how they ask."""

    def __init__(self, query: str) -> None:
        super().__init__("grpc")
        self._query = query

    def connect(self, url: str) -> Backend:
        return super().connect(url + self._query)


class TestGrpc(TransportConformance):
    @pytest.fixture
    def transport_factory(self, socket_folder: Path, query: str) -> TransportFactory:
        numbers = iter(range(100_000))

        def make() -> tuple[Transport, str]:
            return Asking(query), f"grpc://{socket_folder}/{next(numbers)}.sock"

        return make
