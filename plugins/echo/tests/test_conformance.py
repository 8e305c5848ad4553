"""Echo keeps the contract."""

from __future__ import annotations

from typing import ClassVar

import pytest

from themis_echo.backend import EchoBackend
from themis_echo.settings import EchoSettings
from themis_testkit import BackendConformance
from themis_testkit.conformance import BackendFactory


class TestEcho(BackendConformance):
    prompt: ClassVar[str] = "The quick brown fox jumps over the lazy dog. " * 24
    has_one_answer: ClassVar[bool] = True

    @pytest.fixture
    def backend_factory(self) -> BackendFactory:
        return lambda: EchoBackend(EchoSettings(delay=0.001))
