"""All messages survive encoding, and the strategies give valid ones."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_core.messages import (
    OPTIONAL_FIELDS,
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
    Started,
)
from themis_testkit import strategies

CODECS = [msgspec.json, msgspec.msgpack]


def round_trip(codec: Any, value: Any, as_type: Any) -> Any:
    return codec.decode(codec.encode(value), type=as_type)


@pytest.mark.parametrize("codec", CODECS, ids=["json", "msgpack"])
@given(request_=strategies.generate_requests())
@settings(max_examples=50)
def test_requests_round_trip(codec: Any, request_: GenerateRequest) -> None:
    assert round_trip(codec, request_, GenerateRequest) == request_


@pytest.mark.parametrize("codec", CODECS, ids=["json", "msgpack"])
@given(event=strategies.events())
def test_events_round_trip(codec: Any, event: GenerateEvent) -> None:
    assert round_trip(codec, event, GenerateEvent) == event


@pytest.mark.parametrize("codec", CODECS, ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "kind", [BackendStats, Capabilities, Completion, EmbedRequest, EmbedResponse, ModelInfo]
)
@given(data=st.data())
@settings(max_examples=25)
def test_everything_else_round_trips(codec: Any, kind: type, data: st.DataObject) -> None:
    value = data.draw(of(kind))
    assert round_trip(codec, value, kind) == value


def of(kind: type) -> st.SearchStrategy[Any]:
    """Any value of a class, each field by its name or its type."""
    inputs = strategies.texts(min_size=1) | strategies.token_ids(min_size=1)
    number = st.floats(allow_nan=False, allow_infinity=False)
    by_name: dict[str, st.SearchStrategy[Any]] = {
        "choices": st.lists(st.deferred(lambda: of(Choice)), max_size=2).map(tuple),
        "capabilities": st.deferred(lambda: of(Capabilities)),
        "request_fields": st.frozensets(st.sampled_from(sorted(OPTIONAL_FIELDS))),
        "usage": strategies.usages(),
        "token_ids": strategies.token_ids(),
        "logprobs": st.lists(strategies.token_logprobs(), max_size=2).map(tuple),
        "matched": st.none() | strategies.texts() | st.integers(0, 1000),
        "inputs": st.lists(inputs, min_size=1, max_size=3).map(tuple),
        "embeddings": st.lists(st.lists(number, max_size=3).map(tuple), max_size=3).map(tuple),
    }
    by_type = {int: st.integers(0, 2**40), str: strategies.texts()}
    chosen = {}
    for field in msgspec.structs.fields(kind):
        strategy = by_name.get(field.name, by_type.get(field.type))
        if strategy is not None:
            chosen[field.name] = strategy
    return st.builds(kind, **chosen)


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
