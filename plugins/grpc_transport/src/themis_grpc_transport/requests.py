"""Requests, to Protobuf and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from themis_core.errors import InvalidRequest
from themis_core.messages import (
    AdapterWeight,
    ChatMessage,
    Constraint,
    EmbedRequest,
    GenerateRequest,
    NamedTool,
    Role,
    SamplingParams,
    Tool,
    ToolCall,
    ToolChoice,
)
from themis_grpc_transport.fields import (
    expressing,
    from_json,
    number_of,
    object_from_json,
    read,
    to_json,
    write,
)
from themis_grpc_transport.v1 import themis_pb2 as pb

_ROLES: dict[int, Role] = {pb.Role.Value(f"ROLE_{role.upper()}"): role for role in get_args(Role)}
_MODES: dict[int, Literal["auto", "none", "required"]] = {
    pb.ToolChoice.MODE_AUTO: "auto",
    pb.ToolChoice.MODE_NONE: "none",
    pb.ToolChoice.MODE_REQUIRED: "required",
}
_SOURCES = ("regex", "lark", "gbnf")


def request_to_proto(request: GenerateRequest) -> pb.GenerateRequest:
    """Raises `InvalidRequest` for what Protobuf cannot express."""
    with expressing():
        message = write(request, pb.GenerateRequest())
        with expressing("prompt"):
            if isinstance(request.prompt, str):
                message.text = request.prompt
            elif request.prompt is not None:
                message.token_ids.ids.extend(request.prompt)
        message.messages.extend(chat_to_proto(turn) for turn in request.messages)
        message.tools.extend(_tool_to_proto(tool) for tool in request.tools)
        _choose(message.tool_choice, request.tool_choice)
        if request.template_options:
            message.template_options_json = to_json(request.template_options)
        write(request.sampling, message.sampling)
        if request.constraint is not None:
            _constrain(message.constraint, request.constraint)
        message.adapters.extend(adapter_to_proto(adapter) for adapter in request.adapters)
    return message


def request_from_proto(message: pb.GenerateRequest) -> GenerateRequest:
    """Raises `InvalidRequest` as making the request would."""
    others: dict[str, Any] = {}
    if message.HasField("text"):
        others["prompt"] = message.text
    elif message.HasField("token_ids"):
        others["prompt"] = tuple(message.token_ids.ids)
    if message.HasField("constraint"):
        others["constraint"] = _constraint_from_proto(message.constraint)
    return read(
        message,
        GenerateRequest,
        messages=tuple(chat_from_proto(turn) for turn in message.messages),
        tools=tuple(_tool_from_proto(tool) for tool in message.tools),
        tool_choice=_tool_choice_from_proto(message.tool_choice),
        template_options=object_from_json(message.template_options_json, "template_options"),
        sampling=read(message.sampling, SamplingParams),
        adapters=adapters_from_proto(message.adapters),
        **others,
    )


def embed_to_proto(request: EmbedRequest) -> pb.EmbedRequest:
    """Raises `InvalidRequest` for what Protobuf cannot express."""
    with expressing():
        message = write(request, pb.EmbedRequest())
        for given in request.inputs:
            if isinstance(given, str):
                message.inputs.add(text=given)
            else:
                message.inputs.add().token_ids.ids.extend(given)
    return message


def embed_from_proto(message: pb.EmbedRequest) -> EmbedRequest:
    """Raises `InvalidRequest` as making the request would."""
    inputs = tuple(
        tuple(given.token_ids.ids) if given.HasField("token_ids") else given.text
        for given in message.inputs
    )
    return read(message, EmbedRequest, inputs=inputs)


def prompt_to_proto(prompt: str | tuple[ChatMessage, ...]) -> pb.TokenizeRequest:
    """The argument of `Backend.tokenize`. Raises `InvalidRequest`."""
    with expressing():
        if isinstance(prompt, str):
            return pb.TokenizeRequest(text=prompt)
        return pb.TokenizeRequest(messages=[chat_to_proto(turn) for turn in prompt])


def prompt_from_proto(message: pb.TokenizeRequest) -> str | tuple[ChatMessage, ...]:
    """A text or messages."""
    if message.HasField("text"):
        return message.text
    return tuple(chat_from_proto(turn) for turn in message.messages)


def chat_to_proto(turn: ChatMessage) -> pb.ChatMessage:
    """One turn."""
    message = write(turn, pb.ChatMessage())
    message.role = number_of(pb.Role, f"ROLE_{turn.role.upper()}")
    message.tool_calls.extend(write(call, pb.ToolCall()) for call in turn.tool_calls)
    return message


def chat_from_proto(message: pb.ChatMessage) -> ChatMessage:
    """Raises `InvalidRequest` for a role that is not known here."""
    if message.role not in _ROLES:
        raise InvalidRequest(
            f"A message has role {message.role}.",
            field="messages",
            remedy="Give each message one of the roles system, user, assistant and tool.",
        )
    calls = tuple(read(call, ToolCall) for call in message.tool_calls)
    return read(message, ChatMessage, role=_ROLES[message.role], tool_calls=calls)


def adapter_to_proto(adapter: AdapterWeight) -> pb.AdapterWeight:
    """An adapter's name and weight."""
    return write(adapter, pb.AdapterWeight())


def adapters_from_proto(messages: Iterable[pb.AdapterWeight]) -> tuple[AdapterWeight, ...]:
    """Names and weights."""
    return tuple(read(message, AdapterWeight) for message in messages)


def _tool_to_proto(tool: Tool) -> pb.Tool:
    message = write(tool, pb.Tool())
    if tool.parameters:
        message.parameters_json = to_json(tool.parameters)
    return message


def _tool_from_proto(message: pb.Tool) -> Tool:
    return read(message, Tool, parameters=object_from_json(message.parameters_json, "tools"))


def _choose(message: pb.ToolChoice, choice: ToolChoice) -> None:
    if isinstance(choice, NamedTool):
        message.name = choice.name
    else:
        message.mode = number_of(pb.ToolChoice.Mode, f"MODE_{choice.upper()}")


def _tool_choice_from_proto(message: pb.ToolChoice) -> ToolChoice:
    if message.HasField("name"):
        return NamedTool(name=message.name)
    if message.mode not in _MODES:
        raise InvalidRequest(f"tool_choice has mode {message.mode}.", field="tool_choice")
    return _MODES[message.mode]


def _constrain(message: pb.Constraint, constraint: Constraint) -> None:
    kind, value = constraint.kind, constraint.value
    if kind == "json_schema":
        message.json_schema = to_json(value)
    elif kind == "choice" and _texts(value):
        message.choice.SetInParent()
        message.choice.options.extend(value)
    elif kind in _SOURCES and isinstance(value, str):
        setattr(message, kind, value)
    else:
        wanted = "a list of strings" if kind == "choice" else "text"
        raise InvalidRequest(
            f"The constraint's value is {value!r}, but {kind} takes {wanted}.", field="constraint"
        )


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _constraint_from_proto(message: pb.Constraint) -> Constraint:
    kind = message.WhichOneof("kind")
    if kind == "json_schema":
        schema = from_json(message.json_schema, "constraint")
        return Constraint(kind="json_schema", value=schema)
    if kind == "choice":
        return Constraint(kind="choice", value=list(message.choice.options))
    if kind is None:
        raise InvalidRequest("The constraint is of no known kind.", field="constraint")
    return Constraint(kind=kind, value=getattr(message, kind))
