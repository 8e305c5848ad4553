"""`unix` and `shm` keep the contract of transports."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from themis_shm_transport.transport import SocketTransport
from themis_testkit import TransportConformance
from themis_testkit.conformance import TransportFactory


class TestSocketTransport(TransportConformance):
    """With both schemes: `scheme` has parameters."""

    @pytest.fixture
    def transport_factory(self, scheme: str, socket_folder: Path) -> TransportFactory:
        numbers = itertools.count()

        def make() -> tuple[SocketTransport, str]:
            return SocketTransport(scheme), f"{scheme}://{socket_folder}/{next(numbers)}.sock"

        return make
