"""Every field of every message reaches the other end: Protobuf and back is the identity."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from themis_core.errors import (
    BackendFailed,
    ConfigInvalid,
    InvalidRequest,
    ThemisError,
    all_error_types,
)
from themis_core.messages import (
    OPTIONAL_FIELDS,
    AdapterWeight,
    BackendStats,
    Capabilities,
    ChatMessage,
    Choice,
    Completion,
    Constraint,
    Delta,
    Done,
    EmbedRequest,
    EmbedResponse,
    Finished,
    GenerateEvent,
    GenerateRequest,
    Histogram,
    ModelInfo,
    SamplingParams,
    Started,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from themis_core.protocol import Matrix
from themis_core.protocol.failures import Failure, to_failure
from themis_grpc_transport import events, facts, requests
from themis_grpc_transport.fields import read, write
from themis_grpc_transport.statuses import STATUSES
from themis_grpc_transport.v1 import themis_pb2 as pb
from themis_grpc_transport.v1 import themis_pb2_grpc as services
from themis_testkit import strategies

T = TypeVar("T")
SOURCE = Path(__file__).parents[1] / "src"


def over_the_wire(message: Any) -> Any:
    """As the other end parses it."""
    return type(message).FromString(message.SerializeToString())


def generate(request: GenerateRequest) -> GenerateRequest:
    return requests.request_from_proto(over_the_wire(requests.request_to_proto(request)))


def event(found: T) -> T:
    message = over_the_wire(events.event_to_proto(found))  # type: ignore[arg-type]
    return events.event_from_proto(message)  # type: ignore[return-value]


def completion(found: Completion) -> Completion:
    return events.completion_from_proto(over_the_wire(events.completion_to_proto(found)))


def embed(request: EmbedRequest) -> EmbedRequest:
    return requests.embed_from_proto(over_the_wire(requests.embed_to_proto(request)))


def info(found: ModelInfo) -> ModelInfo:
    return facts.info_from_proto(over_the_wire(facts.info_to_proto(found)))


def stats(found: BackendStats) -> BackendStats:
    return facts.stats_from_proto(over_the_wire(facts.stats_to_proto(found)))


def failure(found: Failure) -> Failure:
    return facts.failure_from_proto(over_the_wire(facts.failure_to_proto(found)))


def inside(
    wrap: Callable[[Any], Any], trip: Callable[[Any], Any], unwrap: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """The round trip of a message that travels within another."""
    return lambda found: unwrap(trip(wrap(found)))


USER = ChatMessage(role="user", content="x")
CHOICE = Choice(finish_reason="stop")
TOKEN = TokenLogprob(token_id=1, token=b"x", logprob=-1.0)


class Crossing(NamedTuple):
    """A message, and how it goes there and back."""

    base: Any
    trip: Callable[[Any], Any]


def of_request(field: str) -> Callable[[Any], Any]:
    def wrap(found: Any) -> GenerateRequest:
        keys: dict[str, Any] = {"messages": (USER,), field: found}
        return GenerateRequest(**keys)

    return inside(wrap, generate, lambda request: getattr(request, field))


CROSSING = [
    Crossing(GenerateRequest(messages=(USER,), tools=(Tool(name="f"),)), generate),
    Crossing(SamplingParams(), of_request("sampling")),
    Crossing(Constraint(kind="json_schema", value={}), of_request("constraint")),
    Crossing(
        AdapterWeight(name="a"),
        inside(lambda a: Started(prompt_tokens=1, adapters=(a,)), event, lambda e: e.adapters[0]),
    ),
    Crossing(
        ChatMessage(role="user"),
        inside(lambda m: GenerateRequest(messages=(m,)), generate, lambda r: r.messages[0]),
    ),
    Crossing(
        ToolCall(id="", name="", arguments=""),
        inside(
            lambda c: ChatMessage(role="assistant", tool_calls=(c,)),
            lambda m: requests.chat_from_proto(over_the_wire(requests.chat_to_proto(m))),
            lambda m: m.tool_calls[0],
        ),
    ),
    Crossing(
        Tool(name="f"),
        inside(
            lambda t: GenerateRequest(messages=(USER,), tools=(t,)), generate, lambda r: r.tools[0]
        ),
    ),
    Crossing(Started(prompt_tokens=0), event),
    Crossing(Delta(), event),
    Crossing(TOKEN, inside(lambda t: Delta(logprobs=(t,)), event, lambda d: d.logprobs[0])),
    Crossing(
        ToolCallDelta(), inside(lambda t: Delta(tool_calls=(t,)), event, lambda d: d.tool_calls[0])
    ),
    Crossing(Finished(reason="stop"), event),
    Crossing(Done(usage=Usage()), event),
    Crossing(Usage(), inside(lambda u: Done(usage=u), event, lambda d: d.usage)),
    Crossing(Completion(request_id="", model="", choices=(CHOICE,), usage=Usage()), completion),
    Crossing(
        CHOICE,
        inside(
            lambda c: Completion(request_id="", model="", choices=(c,), usage=Usage()),
            completion,
            lambda c: c.choices[0],
        ),
    ),
    Crossing(EmbedRequest(inputs=("x",)), embed),
    Crossing(ModelInfo(backend=""), info),
    Crossing(
        Capabilities(),
        inside(lambda c: ModelInfo(backend="", capabilities=c), info, lambda i: i.capabilities),
    ),
    Crossing(BackendStats(), stats),
    Crossing(Histogram(), inside(lambda h: BackendStats(ttft=h), stats, lambda s: s.ttft)),
    Crossing(Failure(kind="", codes=(), message="", retryable=False), failure),
]
ONE_FIELD = [
    pytest.param(one, name, id=f"{type(one.base).__name__}.{name}")
    for one in CROSSING
    for name in type(one.base).__struct_fields__
]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Anything of a type, within ranges that most fields allow."""
    origin, arguments = get_origin(kind), get_args(kind)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(1, 20),
        float: st.floats(0.0625, 1),
        str: strategies.texts(),
        bytes: st.binary(max_size=8),
        bool: st.booleans(),
        NoneType: st.none(),
        Any: st.dictionaries(strategies.texts(), strategies.json_values(), max_size=2),
    }
    if kind in plain:
        return plain[kind]
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if origin is frozenset:
        return st.frozensets(st.sampled_from(sorted(OPTIONAL_FIELDS)))
    if kind is Constraint:
        return strategies.constraints()
    hints = get_type_hints(kind)
    return st.fixed_dictionaries({name: values(hints[name]) for name in hints}).flatmap(
        lambda keys: made(kind, keys)
    )


def made(kind: Any, keys: dict[str, Any]) -> st.SearchStrategy[Any]:
    try:
        return st.just(kind(**keys))
    except ThemisError:
        return st.nothing()


@pytest.mark.parametrize(("one", "name"), ONE_FIELD)
def test_each_field_by_itself_survives(one: Crossing, name: str) -> None:
    """A field that is added and not carried fails here, whatever its default."""
    base, trip = one
    kind = get_type_hints(type(base))[name]

    # The fields of a constraint depend on each other.
    whole = isinstance(base, Constraint)

    @settings(max_examples=15, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(value=values(type(base) if whole else kind))
    def check(value: Any) -> None:
        changed: dict[str, Any] = {name: value}
        if isinstance(base, GenerateRequest) and name == "prompt":
            changed |= {"messages": (), "tools": ()}
        try:
            found = value if whole else msgspec.structs.replace(base, **changed)
        except ThemisError:
            assume(False)
        assume(getattr(found, name) != getattr(base, name))
        assert trip(found) == found
        seen.append(found)

    seen: list[Any] = []
    check()
    assert seen


def test_all_messages_are_in_the_list() -> None:
    """Those of the core that a backend takes or gives, and what is within them."""
    found: set[type] = set()

    def walk(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in found:
            found.add(kind)
            for hint in get_type_hints(kind).values():
                walk(hint)
        for argument in get_args(kind):
            walk(argument)

    for root in (GenerateRequest, EmbedRequest, GenerateEvent, Completion, ModelInfo, BackendStats):
        walk(root)
    named = {kind.__name__ for kind in found} - {"NamedTool"}  # It is a field of ToolChoice.
    assert named <= {type(one.base).__name__ for one in CROSSING}


@given(strategies.generate_requests())
def test_requests_survive(request: GenerateRequest) -> None:
    assert generate(request) == request


@given(strategies.events())
def test_events_survive(found: GenerateEvent) -> None:
    assert event(found) == found


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(width=32, allow_nan=False), min_size=n, max_size=n).map(tuple),
            min_size=1,
            max_size=4,
        )
    )
)
def test_embeddings_survive(rows: list[tuple[float, ...]]) -> None:
    """As tuples, and as a matrix that is sent as it is."""
    flat = array("f", (value for row in rows for value in row))
    matrix: Any = Matrix(memoryview(flat), len(rows[0]))
    usage = Usage(prompt_tokens=3)
    for vectors in (tuple(rows), matrix):
        response = EmbedResponse(embeddings=vectors, usage=usage)
        back = events.embeddings_from_proto(over_the_wire(events.embeddings_to_proto(response)))
        assert back.usage == usage
        assert list(back.embeddings) == rows


def test_vectors_of_different_lengths_are_an_error() -> None:
    ragged = EmbedResponse(embeddings=((1.0,), (1.0, 2.0)), usage=Usage())
    with pytest.raises(BackendFailed, match="different lengths"):
        events.embeddings_to_proto(ragged)
    with pytest.raises(BackendFailed, match="7 bytes"):
        events.embeddings_from_proto(pb.EmbedResponse(rows=1, columns=2, data=b"1234567"))


@given(strategies.sampling_params())
def test_what_is_absent_has_the_default(params: SamplingParams) -> None:
    """As from a client of another language that sets nothing."""
    assert read(pb.SamplingParams(), SamplingParams) == SamplingParams()
    assert read(write(params, pb.SamplingParams()), SamplingParams) == params
    made = requests.request_from_proto(pb.GenerateRequest(text="x"))
    expected = GenerateRequest(prompt="x", request_id=made.request_id)
    assert msgspec.structs.asdict(made) == msgspec.structs.asdict(expected)
    assert made.request_id


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(), "prompt"),
        (pb.GenerateRequest(text="x", sampling=pb.SamplingParams(top_p=2)), "sampling.top_p"),
        (pb.GenerateRequest(text="x", constraint=pb.Constraint()), "constraint"),
        (pb.GenerateRequest(text="x", constraint=pb.Constraint(json_schema="{")), "constraint"),
        (pb.GenerateRequest(messages=[pb.ChatMessage(content="x")]), "messages"),
        (
            pb.GenerateRequest(
                messages=[pb.ChatMessage(role=pb.ROLE_USER)], template_options_json="[1]"
            ),
            "template_options",
        ),
    ],
)
def test_nonsense_is_refused(message: pb.GenerateRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.request_from_proto(message)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt=(2**70,)),
        GenerateRequest(prompt="\ud800"),
        GenerateRequest(prompt="x", priority=2**64),
        GenerateRequest(prompt="x", constraint=Constraint(kind="regex", value=3)),
        GenerateRequest(prompt="x", constraint=Constraint(kind="choice", value=[1])),
        GenerateRequest(prompt="x", constraint=Constraint(kind="json_schema", value=object())),
    ],
)
def test_what_cannot_be_expressed_is_refused(request_: GenerateRequest) -> None:
    with pytest.raises(InvalidRequest):
        requests.request_to_proto(request_)


@given(st.binary(max_size=200))
def test_any_bytes_make_a_request_or_an_error(data: bytes) -> None:
    message = pb.GenerateRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    try:
        requests.request_from_proto(message)
    except ThemisError:
        return


def test_every_error_has_a_status() -> None:
    codes = {kind.code for kind in all_error_types()}
    assert set(STATUSES) <= codes


def test_errors_survive() -> None:
    for kind in all_error_types():
        extra: dict[str, Any] = {"problems": ("a", "b")} if kind is ConfigInvalid else {}
        error = kind("what", field="f", remedy="do", plugin="p", **extra)
        error.__cause__ = OSError("why")
        found = to_failure(error)
        assert failure(found) == found


def test_generated_code_is_current() -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    from grpc_tools import _proto

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        include = Path(_proto.__path__[0])
        arguments = [f"-I{SOURCE}", f"-I{include}", f"--descriptor_set_out={out}"]
        name = "themis_grpc_transport/v1/themis.proto"
        assert protoc.main(["protoc", *arguments, name]) == 0
        compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    checked_in = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(checked_in)
    for one in (compiled, checked_in):
        clear_json_names(one)
    assert compiled == checked_in, "run plugins/grpc_transport/generate.py"
    for service in compiled.service:
        servicer = getattr(services, f"{service.name}Servicer")
        assert {method.name for method in service.method} <= set(vars(servicer))


def clear_json_names(file: Any) -> None:
    """They are derived, and not in every descriptor."""

    def clear(message: Any) -> None:
        for field in message.field:
            field.ClearField("json_name")
        for nested in message.nested_type:
            clear(nested)

    for message in file.message_type:
        clear(message)
