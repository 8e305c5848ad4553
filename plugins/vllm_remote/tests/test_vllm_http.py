"""The HTTP door against a real server, without vLLM: what is sent, and what becomes of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from themis_core.errors import (
    AdapterNotFound,
    BackendFailed,
    InvalidRequest,
    ModelFileInvalid,
    ModelLoadFailed,
    PromptTooLong,
    UnsupportedField,
)
from themis_core.messages import AdapterWeight, Constraint, GenerateRequest, SamplingParams
from themis_testkit.conformance.base import complete
from themis_vllm_remote.fields import honoured

from .conftest import Body, connected
from .upstream import TOKENIZER, VOCABULARY, Upstream

Run = Callable[[Body], None]
LOCAL = {"tokenizer": str(TOKENIZER)}


def asked(prompt: Any = (7, 8, 9), **sampling: Any) -> GenerateRequest:
    given = {"max_tokens": 4, "temperature": 0.0} | sampling
    return GenerateRequest(prompt=prompt, sampling=SamplingParams(**given))


@pytest.mark.parametrize("settings", [{}, LOCAL], ids=["server", "local"])
def test_an_answer(with_upstream: Run, settings: dict[str, Any]) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream, **settings) as backend:
            answer = await complete(backend, asked())
            assert answer.choices[0].token_ids == (10, 11, 12, 13)
            assert answer.choices[0].text == await backend.detokenize((10, 11, 12, 13))
            assert answer.choices[0].finish_reason == "length"
            assert answer.usage.prompt_tokens == 3
            assert backend.info.description == "tiny on vLLM 0.32.0"
            assert backend.info.context_length == 2048

    with_upstream(body)


def test_the_route_for_token_ids_is_used_where_it_is(with_upstream: Run) -> None:
    async def body(_: Upstream) -> None:
        upstream = Upstream()
        upstream.tokens_route = True
        await upstream.start()
        try:
            async with connected(upstream, **LOCAL) as backend:
                answer = await complete(backend, asked())
                assert answer.choices[0].token_ids == (10, 11, 12, 13)
                assert "detokenize" in upstream.bodies[-1]
        finally:
            await upstream.stop()

    with_upstream(body)


def test_every_sampling_field_is_sent_and_none_is_old(with_upstream: Run) -> None:
    """What is not sent, the model's generation_config.json would decide."""
    sampling = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "min_tokens": 1,
        "stop_token_ids": (5,),
        "ignore_eos": True,
        "logit_bias": {3: 2.0},
    }

    async def body(upstream: Upstream) -> None:
        async with connected(upstream) as backend:
            await complete(backend, asked(**sampling, seed=2**64 - 1))
            sent = upstream.bodies[-1]
            for name, value in sampling.items():
                expected: Any = list(value) if isinstance(value, tuple) else value
                expected = {"3": 2.0} if name == "logit_bias" else expected
                assert sent[name] == expected, name
            assert 0 <= sent["seed"] < 2**62
            assert sent["max_tokens"] == 4
            await complete(backend, asked())
            assert {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"} <= set(
                upstream.bodies[-1]
            )
            constrained = GenerateRequest(
                prompt=(1,),
                sampling=SamplingParams(max_tokens=1, temperature=0.0),
                constraint=Constraint(kind="regex", value="a+"),
            )
            await complete(backend, constrained)
            assert upstream.bodies[-1]["structured_outputs"] == {"regex": "a+"}
            assert not [name for name in upstream.bodies[-1] if name.startswith("guided")]

    with_upstream(body)


def test_nothing_is_shortened(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        for settings in ({}, LOCAL):
            async with connected(upstream, **settings) as backend:
                with pytest.raises(PromptTooLong) as caught:
                    await complete(backend, asked(max_tokens=2046))
                assert caught.value.field == "sampling.max_tokens"
                with pytest.raises(PromptTooLong):
                    await complete(backend, asked((1,) * 2048, max_tokens=None))
                assert not upstream.bodies

    with_upstream(body)


def test_a_server_with_a_limit_of_its_own_is_found_out(with_upstream: Run) -> None:
    """A generation_config.json with max_new_tokens cuts every answer, and vLLM says `length`."""

    async def body(upstream: Upstream) -> None:
        upstream.cap = 2
        for settings in ({}, LOCAL):
            async with connected(upstream, **settings) as backend:
                with pytest.raises(BackendFailed, match="2 of 4 tokens"):
                    await complete(backend, asked())

    with_upstream(body)


def test_output_that_breaks_its_constraint_is_an_error(with_upstream: Run) -> None:
    """The server here ignores constraints. What it writes is found to be wrong."""

    async def end(stream: Any) -> None:
        # Ends as if by itself, after one token.
        stream.upstream.cap = 1

    async def body(upstream: Upstream) -> None:
        for settings in ({}, LOCAL):
            upstream.on_event = None
            async with connected(upstream, **settings) as backend:
                request = GenerateRequest(
                    prompt=(300,),
                    sampling=SamplingParams(max_tokens=3, temperature=0.0, stop=(" ", "e", "a")),
                    constraint=Constraint(kind="choice", value=["violett"]),
                )
                text = await backend.detokenize((301, 302, 303))
                assert any(stop in text for stop in request.sampling.stop), text
                with pytest.raises(BackendFailed, match="constraint"):
                    await complete(backend, request)

    with_upstream(body)


def test_what_vllm_would_change_is_refused(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        upstream.adapters["a"] = "/a"
        upstream.adapters["b"] = "/b"
        async with connected(upstream) as backend:
            with pytest.raises(UnsupportedField) as caught:
                await complete(backend, asked(temperature=0.001))
            assert caught.value.field == "sampling.temperature"
            for names in (
                (AdapterWeight(name="a", weight=0.5),),
                (AdapterWeight(name="a"), AdapterWeight(name="b")),
            ):
                request = GenerateRequest(prompt=(1,), adapters=names)
                with pytest.raises(UnsupportedField) as refused:
                    await complete(backend, request)
                assert refused.value.field == "adapters"
            lark = Constraint(kind="lark", value='start: "a"')
            with pytest.raises(UnsupportedField):
                await complete(backend, GenerateRequest(prompt=(1,), constraint=lark))
            for ids in ((-1,), (2**31,)):
                with pytest.raises(InvalidRequest):
                    await complete(backend, asked(ids))
        async with connected(upstream, **LOCAL) as backend:
            with pytest.raises(InvalidRequest):
                await complete(backend, asked((1920,)))
        assert not upstream.bodies

    with_upstream(body)


@pytest.mark.parametrize("settings", [{}, LOCAL], ids=["server", "local"])
def test_what_is_no_text_is_refused(with_upstream: Run, settings: dict[str, Any]) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream, **settings) as backend:
            with pytest.raises(InvalidRequest) as caught:
                await complete(backend, asked("a\ud800b"))
            assert caught.value.field == "prompt"

    with_upstream(body)


def test_declared_fields_are_those_of_the_table(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        upstream.adapters["a"] = "/a"
        async with connected(upstream) as backend:
            assert backend.info.capabilities.request_fields == honoured("http")
        guidance = LOCAL | {"structured": "guidance"}
        async with connected(upstream, **guidance) as backend:
            assert backend.info.capabilities.request_fields == honoured("http+tokenizer")

    with_upstream(body)


def test_tenants_have_prefixes_of_their_own(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        salts = []
        async with connected(upstream) as backend:
            for tenant, salt in ((None, None), ("a", None), ("b", None), ("a", "x"), (None, "x")):
                await complete(
                    backend,
                    GenerateRequest(
                        prompt=(1,),
                        tenant=tenant,
                        cache_salt=salt,
                        sampling=SamplingParams(max_tokens=1),
                    ),
                )
                salts.append(upstream.bodies[-1].get("cache_salt"))
        assert salts[0] is None
        assert len(set(salts)) == 5
        async with connected(upstream, prefixes="shared") as backend:
            await complete(
                backend,
                GenerateRequest(prompt=(1,), tenant="a", sampling=SamplingParams(max_tokens=1)),
            )
            assert "cache_salt" not in upstream.bodies[-1]

    with_upstream(body)


def test_adapters(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        upstream.adapters["old"] = "/old"
        async with connected(upstream) as backend:
            assert [a.name for a in await backend.adapters()] == ["old"]
            with pytest.raises(ModelFileInvalid, match="/missing"):
                await backend.load_adapter("new", "/missing")
            await backend.load_adapter("new", "/new")
            request = GenerateRequest(
                prompt=(1,),
                adapters=(AdapterWeight(name="new"),),
                sampling=SamplingParams(max_tokens=1),
            )
            await complete(backend, request)
            assert upstream.bodies[-1]["model"] == "new"
            # The server forgets what was loaded when it is restarted; it is loaded again.
            del upstream.adapters["new"]
            await complete(backend, request)
            assert upstream.adapters["new"] == "/new"
            del upstream.adapters["old"]
            old = GenerateRequest(prompt=(1,), adapters=(AdapterWeight(name="old"),))
            with pytest.raises(AdapterNotFound):
                await complete(backend, old)
            await backend.unload_adapter("new")
            assert "new" not in upstream.adapters

    with_upstream(body)


def test_the_key_and_the_model_are_checked_at_the_start(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        upstream.key = "secret"
        with pytest.raises(ModelLoadFailed, match="api_key") as caught:
            async with connected(upstream):
                pass
        assert "secret" not in str(caught.value)
        async with connected(upstream, api_key="secret") as backend:
            await complete(backend, asked())
        with pytest.raises(ModelLoadFailed, match="it serves 'tiny'"):
            async with connected(upstream, api_key="secret", model="large"):
                pass

    with_upstream(body)


def test_connections_are_used_again(with_upstream: Run) -> None:
    """A finished stream leaves its connection to the next request."""
    ports: set[int] = set()

    async def note(stream: Any) -> None:
        ports.add(stream.request.transport.get_extra_info("peername")[1])

    async def body(upstream: Upstream) -> None:
        async with connected(upstream) as backend:
            upstream.on_event = note
            for _ in range(5):
                await complete(backend, asked())
            assert len(ports) == 1

    with_upstream(body)


def test_many_at_once(with_upstream: Run) -> None:
    async def body(upstream: Upstream) -> None:
        async with connected(upstream, **LOCAL) as backend:
            requests = [asked((i,), max_tokens=i % 40 + 1) for i in range(200)]
            answers = await asyncio.gather(*(complete(backend, r) for r in requests))
            for i, answer in enumerate(answers):
                expected = tuple((i + 1 + j) % VOCABULARY for j in range(i % 40 + 1))
                assert answer.choices[0].token_ids == expected
            stats = await backend.stats()
            assert (stats.requests, stats.finished, stats.running) == (200, 200, 0)

    with_upstream(body)
