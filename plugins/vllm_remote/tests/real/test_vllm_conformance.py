"""The backend conformance suite over every way to a real vLLM."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import msgspec
import pytest

from themis_core.contracts import Backend
from themis_core.errors import UnsupportedField
from themis_core.messages import AdapterWeight, GenerateRequest
from themis_testkit import BackendConformance
from themis_testkit.conformance import BackendFactory
from themis_testkit.conformance.adapters import AdapterFiles
from themis_testkit.conformance.base import complete, need, on_backend, visible_ids
from themis_vllm_remote.create import remote
from themis_vllm_remote.settings import VllmSettings

from .conftest import EngineHost, Hosted
from .servers import ADAPTERS, MODEL, Server, free_port


class Conformance(BackendConformance):
    """vLLM applies one adapter at a time; everything else is as the suite has it."""

    deadline: ClassVar[float] = 150.0

    keeps_apart: ClassVar[bool] = True
    """False for servers on a CPU: see docs/vllm.md, "On a CPU"."""

    def request(
        self, backend: Backend, prompt: str | tuple[int, ...] | None = None, **sampling: Any
    ) -> GenerateRequest:
        """No hotter than vLLM takes."""
        if "temperature" in sampling:
            sampling["temperature"] = min(sampling["temperature"], 2.0)
        return super().request(backend, prompt, **sampling)

    @pytest.fixture
    def adapter_files(self) -> AdapterFiles:
        return ADAPTERS

    @on_backend
    async def test_each_request_has_its_own(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """One adapter for each request."""
        await self._loaded(backend, adapter_files)
        names = [(), *((name,) for name, _ in adapter_files)]
        answers = [await self._answer(backend, *each) for each in names]
        assert len({answer.token_ids for answer in answers}) == 3
        for each, answer in zip(reversed(names), reversed(answers), strict=True):
            assert await self._answer(backend, *each) == answer

    @on_backend
    async def test_two_are_mixed_by_weight(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """Refused, whatever the mixture is; weight 0 is none."""
        await self._loaded(backend, adapter_files)
        first, second = (AdapterWeight(name=name) for name, _ in adapter_files)
        half = msgspec.structs.replace(first, weight=0.5)
        for adapters in ((first, second), (half,)):
            request = msgspec.structs.replace(self.request(backend), adapters=adapters)
            with pytest.raises(UnsupportedField) as caught:
                await complete(backend, request)
            assert caught.value.field == "adapters"
        none = msgspec.structs.replace(first, weight=0.0)
        assert await self._answer(backend, none) == await self._answer(backend)

    @on_backend
    async def test_mixed_company_equals_alone(
        self, backend: Backend, adapter_files: AdapterFiles
    ) -> None:
        """Requests with different adapters at once, and with none: none notices the others."""
        await self._loaded(backend, adapter_files)
        names: list[tuple[str, ...]] = [(name,) for name, _ in adapter_files]
        await self._company(backend, [(), *names] if self.keeps_apart else names)

    async def _company(self, backend: Backend, sets: list[tuple[str, ...]]) -> None:
        # The same prompt: where two tokens are almost equally probable, company may decide.
        requests = [self._request(backend, *names) for names in sets * 4]
        alone = [(await complete(backend, request)).choices[0] for request in requests]
        together = await asyncio.gather(*(complete(backend, request) for request in requests))
        assert [completion.choices[0] for completion in together] == alone


class Remote(Conformance):
    """A server of vLLM's own."""

    settings: ClassVar[dict[str, Any]] = {}
    keeps_apart: ClassVar[bool] = False

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def backend_factory(self, url: str) -> BackendFactory:
        return lambda: remote(VllmSettings(endpoint=url, **self.settings))

    @pytest.fixture
    def broken_backend_factory(self, url: str) -> BackendFactory:
        nowhere = f"{url.split(':')[0]}://127.0.0.1:{free_port()}"
        return lambda: remote(VllmSettings(endpoint=nowhere, start_timeout=0.2, **self.settings))


class TestHttp(Remote):
    """The server makes texts, with its own template and parsers."""

    settings: ClassVar[dict[str, Any]] = {"structured": "guidance"}

    @pytest.fixture
    def url(self, http_server: Server) -> str:
        return f"http://127.0.0.1:{http_server.port}"

    @on_backend
    async def test_special_tokens_in_a_prompt_are_text(self, backend: Backend) -> None:
        """They are not: the server's tokenizer reads them, as docs/vllm.md says."""
        need(backend, "tokenize")
        ids = await backend.tokenize("a<|im_start|>b")
        assert len(ids) == 3

    @on_backend
    async def test_text_never_splits_characters(self, backend: Backend) -> None:
        """Whole characters; vLLM leaves out the beginning of one that is never finished."""
        for seed in range(4):
            choice = await self.answer(backend, self.unicode_prompt, temperature=2.0, seed=seed)
            whole = await backend.detokenize(visible_ids(choice, backend.info))
            assert whole.startswith(choice.text)
            assert not whole.removeprefix(choice.text).strip("\ufffd")


class TestHttpTokens(Remote):
    """Texts are made here; only token ids travel."""

    settings: ClassVar[dict[str, Any]] = {"structured": "guidance", "tokenizer": MODEL}

    @pytest.fixture
    def url(self, http_server: Server) -> str:
        return f"http://127.0.0.1:{http_server.port}"


class TestGrpc(Remote):
    """vLLM's gRPC service, with the tokenizer that it sends."""

    settings: ClassVar[dict[str, Any]] = {"structured": "guidance"}

    @pytest.fixture
    def url(self, grpc_server: Server) -> str:
        return f"grpc://127.0.0.1:{grpc_server.port}"


class Worker(Conformance):
    """The engine in a worker, behind a transport."""

    scheme: ClassVar[str] = ""

    @pytest.fixture
    def backend_factory(self, engine_host: EngineHost) -> BackendFactory:
        return lambda: Hosted(engine_host, self.scheme)


class TestUnix(Worker):
    scheme: ClassVar[str] = "unix"


class TestShm(Worker):
    scheme: ClassVar[str] = "shm"
