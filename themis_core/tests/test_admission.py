"""Before a model is asked: validators and quotas, in time and on the model that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from themis_core.errors import DeadlineExceeded, InternalError, ModelNotFound, UnsupportedField
from themis_core.messages import Capabilities, GenerateRequest, ModelInfo, SamplingParams
from themis_core.runtime import ModelSource, Runtime
from themis_testkit.fakes import FakeQuota, FakeReservation, FakeValidator, ScriptedBackend, say

SOON = GenerateRequest(prompt="hi", timeout=0.01)
PLAIN = ModelInfo(backend="scripted", capabilities=Capabilities())


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


def runtime(backends: dict[str, ScriptedBackend], **arguments: Any) -> Runtime:
    sources = {
        name: ModelSource(backend="scripted", make=lambda b=b: b, aliases=(f"{name}-alias",))  # type: ignore[misc]
        for name, b in backends.items()
    }
    return Runtime(sources, default=next(iter(sources)), **arguments)


class Hanging(FakeValidator):
    """Thinks for ever."""

    def __init__(self) -> None:
        super().__init__("x")
        self.cancelled = 0

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError


class HangingQuota(FakeQuota):
    cancelled = 0

    async def reserve(self, request: GenerateRequest) -> FakeReservation:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        raise AssertionError


class Changing(FakeValidator):
    """Changes requests."""

    def __init__(self, **fields: Any) -> None:
        super().__init__("x")
        self.fields = fields

    async def check_input(self, request: GenerateRequest) -> GenerateRequest:
        return msgspec.structs.replace(await super().check_input(request), **self.fields)


def test_a_validator_that_hangs_is_cancelled_at_the_deadline() -> None:
    async def body() -> None:
        backend, quota, hanging = ScriptedBackend(say("a")), FakeQuota(), Hanging()
        async with runtime({"m": backend}, validators=[hanging], quota=quota) as r:
            with pytest.raises(DeadlineExceeded, match=r"within 0\.01 seconds") as caught:
                await r.complete(SOON)
            assert caught.value.field == "timeout"
        assert hanging.cancelled == 1
        assert not quota.reservations
        assert not backend.starts

    run(body)


def test_a_quota_that_hangs_is_cancelled_at_the_deadline() -> None:
    async def body() -> None:
        backend, quota = ScriptedBackend(say("a")), HangingQuota()
        async with runtime({"m": backend}, quota=quota) as r:
            with pytest.raises(DeadlineExceeded):
                await r.complete(SOON)
        assert quota.cancelled == 1
        assert not backend.starts

    run(body)


def test_what_is_left_of_the_time_is_for_the_backend() -> None:
    class Slow(FakeValidator):
        async def check_input(self, request: GenerateRequest) -> GenerateRequest:
            await asyncio.sleep(0.02)
            return request

    async def body() -> None:
        backend, quota = ScriptedBackend(say("a")), FakeQuota()
        async with runtime({"m": backend}, validators=[Slow("x")], quota=quota) as r:
            await r.complete(GenerateRequest(prompt="hi", timeout=50))
            assert backend.requests[0].timeout is not None
            assert backend.requests[0].timeout <= 49.99

    run(body)


def test_a_validator_may_set_the_time_limit() -> None:
    async def body() -> None:
        hanging = Hanging()
        validators = [Changing(timeout=0.01), hanging]
        async with runtime({"m": ScriptedBackend(say("a"))}, validators=validators) as r:
            with pytest.raises(DeadlineExceeded):
                await r.complete(GenerateRequest(prompt="hi"))
            assert hanging.cancelled == 1
            with pytest.raises(DeadlineExceeded):
                await r.complete(GenerateRequest(prompt="hi", timeout=3600))

    run(body)


def test_cancelling_the_caller_is_no_deadline() -> None:
    async def body() -> None:
        hanging = Hanging()
        async with runtime({"m": ScriptedBackend()}, validators=[hanging]) as r:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(r.complete(GenerateRequest(prompt="hi", timeout=60)), 0.01)
        assert hanging.cancelled == 1

    run(body)


def test_a_validators_own_timeout_is_not_taken_for_the_deadline() -> None:
    class Broken(FakeValidator):
        async def check_input(self, request: GenerateRequest) -> GenerateRequest:
            raise TimeoutError("the policy server does not answer")

    async def body() -> None:
        async with runtime({"m": ScriptedBackend()}, validators=[Broken("x")]) as r:
            with pytest.raises(InternalError) as caught:
                await r.complete(GenerateRequest(prompt="hi", timeout=60))
            assert "policy server" in str(caught.value.__cause__)

    run(body)


@pytest.mark.parametrize("name", ["large", "large-alias"])
def test_a_validator_may_choose_another_model(name: str) -> None:
    async def body() -> None:
        small, large = ScriptedBackend(say("small")), ScriptedBackend(say("large"))
        quota = FakeQuota()
        validators = [Changing(model=name)]
        async with runtime(
            {"small": small, "large": large}, validators=validators, quota=quota
        ) as r:
            completion = await r.complete(GenerateRequest(model="small-alias", prompt="hi"))
            assert (completion.text, completion.model) == ("large", "large")
            assert [status.state for status in r.models()] == ["unloaded", "ready"]
        assert quota.reservations[0].request.model == "large"
        assert large.requests[0].model == "large"

    run(body)


def test_the_fields_are_compared_with_the_model_that_answers() -> None:
    async def body() -> None:
        backends = {"rich": ScriptedBackend(say("a")), "plain": ScriptedBackend(info=PLAIN)}
        async with runtime(backends, validators=[Changing(model="plain")]) as r:
            with pytest.raises(UnsupportedField, match="'plain'"):
                await r.complete(GenerateRequest(prompt="hi", sampling=SamplingParams(top_k=3)))

    run(body)


def test_a_validator_that_chooses_no_model_there_is_fails_the_request() -> None:
    async def body() -> None:
        quota = FakeQuota()
        backend = ScriptedBackend(say("a"))
        async with runtime({"m": backend}, validators=[Changing(model="x")], quota=quota) as r:
            with pytest.raises(ModelNotFound, match="'x'"):
                await r.complete(GenerateRequest(prompt="hi"))
        assert not quota.reservations

    run(body)


@pytest.mark.parametrize("name", ["", "m", "m-alias"])
def test_everybody_sees_the_configured_name(name: str) -> None:
    async def body() -> None:
        backend, quota, validator = ScriptedBackend(say("a")), FakeQuota(), FakeValidator("x")
        async with runtime({"m": backend}, validators=[validator], quota=quota) as r:
            await r.complete(GenerateRequest(model=name, prompt="hi"))
        requests = [validator.inputs[0], quota.reservations[0].request, backend.requests[0]]
        assert [request.model for request in requests] == ["m"] * 3

    run(body)
