"""All messages survive encoding, and the strategies give valid ones."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from themis_core.messages import (
    BackendStats,
    Capabilities,
    Choice,
    Completion,
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    SamplingParams,
    Started,
)

from themis_testkit import strategies

CODECS = [msgspec.json, msgspec.msgpack]


def round_trip(codec: Any, value: Any, as_type: Any) -> Any:
    return codec.decode(codec.encode(value), type=as_type)


@pytest.mark.parametrize("codec", CODECS, ids=["json", "msgpack"])
@given(request_=strategies.generate_requests())
def test_requests_round_trip(codec: Any, request_: GenerateRequest) -> None:
    assert round_trip(codec, request_, GenerateRequest) == request_


@pytest.mark.parametrize("codec", CODECS, ids=["json", "msgpack"])
@given(event=strategies.events())
def test_events_round_trip(codec: Any, event: GenerateEvent) -> None:
    assert round_trip(codec, event, GenerateEvent) == event


@pytest.mark.parametrize("codec", CODECS, ids=["json", "msgpack"])
@given(data=st.data())
def test_everything_else_round_trips(codec: Any, data: st.DataObject) -> None:
    for kind in (BackendStats, Capabilities, Choice, EmbedRequest, EmbedResponse, ModelInfo):
        value = data.draw(_of(kind), label=kind.__name__)
        assert round_trip(codec, value, kind) == value
    completion = data.draw(st.builds(Completion, choices=st.lists(_of(Choice)).map(tuple)))
    assert round_trip(codec, completion, Completion) == completion


def _of(kind: Any) -> st.SearchStrategy[Any]:
    number = st.floats(allow_nan=False, allow_infinity=False)
    inputs = strategies.texts(min_size=1) | strategies.token_ids(min_size=1)
    capabilities = st.builds(Capabilities, request_fields=st.just(frozenset({"messages"})))
    fields: dict[Any, dict[str, Any]] = {
        ModelInfo: {"capabilities": capabilities},
        Capabilities: {"request_fields": st.just(frozenset({"tools", "sampling.seed"}))},
        Choice: {"logprobs": st.lists(strategies.token_logprobs(), max_size=2).map(tuple)},
        EmbedRequest: {"inputs": st.lists(inputs, min_size=1).map(tuple)},
        EmbedResponse: {"embeddings": st.lists(st.lists(number).map(tuple)).map(tuple)},
    }
    return st.builds(kind, **fields.get(kind, {}))


def test_a_ban_survives_msgpack() -> None:
    params = SamplingParams(logit_bias={3: -math.inf})
    assert round_trip(msgspec.msgpack, params, SamplingParams) == params


@given(strategies.event_streams())
def test_streams_are_in_order(stream: list[GenerateEvent]) -> None:
    assert isinstance(stream[0], Started)
    assert isinstance(stream[-1], Done)
    ended: set[int] = set()
    for event in stream[1:-1]:
        assert isinstance(event, Delta | Finished)
        assert event.index not in ended
        if isinstance(event, Finished):
            ended.add(event.index)
    assert ended == set(range(len(ended)))
