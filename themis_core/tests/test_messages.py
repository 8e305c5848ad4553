"""Requests refuse values that mean nothing, naming the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from themis_core.errors import InvalidRequest
from themis_core.messages import (
    Capabilities,
    ChatMessage,
    EmbedRequest,
    GenerateRequest,
    SamplingParams,
    Tool,
)

USER = (ChatMessage(role="user", content="hi"),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", 1e-50),
        ("temperature", 1e39),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: -math.inf}),
        ("seed", -1),
        ("seed", 2**64),
        ("n", 0),
        ("logprobs", 21),
        ("stop", ("",)),
    ],
)
def test_sampling_values_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == f"sampling.{field}"
    assert field in str(caught.value)


def test_min_tokens_above_max_tokens() -> None:
    with pytest.raises(InvalidRequest, match="at most max_tokens"):
        SamplingParams(max_tokens=3, min_tokens=4)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": USER}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ()}, "prompt"),
        ({"prompt": "a", "tools": (Tool(name="t"),)}, "tools"),
        ({"prompt": "a", "timeout": 0}, "timeout"),
    ],
)
def test_requests_that_mean_nothing(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        GenerateRequest(**arguments)
    assert caught.value.field == field


def test_embedding_nothing() -> None:
    for inputs in ((), ("",)):
        with pytest.raises(InvalidRequest):
            EmbedRequest(inputs=inputs)


def test_capabilities_know_the_optional_fields() -> None:
    with pytest.raises(ValueError, match="tmperature"):
        Capabilities(request_fields=frozenset({"sampling.tmperature"}))


def test_request_ids_differ() -> None:
    assert GenerateRequest(prompt="a").request_id != GenerateRequest(prompt="a").request_id


def test_what_one_request_does_to_its_parameters_touches_no_other() -> None:
    GenerateRequest(prompt="a").sampling.logit_bias[1] = 1.0
    assert GenerateRequest(prompt="b").sampling.logit_bias == {}
