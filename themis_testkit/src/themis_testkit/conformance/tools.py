"""Tool calls: asked for, forced, forbidden. Each check needs the fields that it is about."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from themis_core.contracts import Backend
from themis_core.messages import (
    ChatMessage,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    NamedTool,
    SamplingParams,
    Tool,
    ToolCall,
)
from themis_testkit.conformance.base import ConformanceBase, collect, fields, need, on_backend

_CITY = {
    "type": "object",
    # Short enough for the call to be complete within `tool_tokens`.
    "properties": {"city": {"type": "string", "maxLength": 24}},
    "required": ["city"],
    "additionalProperties": False,
}


class ToolChecks(ConformanceBase):
    """`GenerateRequest.tools`, `tool_choice` and `parallel_tool_calls`."""

    tool_prompt: ClassVar[str] = "What is the weather in Paris?"
    """A question for the first of `offered_tools`."""

    offered_tools: ClassVar[tuple[Tool, ...]] = (
        Tool(name="get_weather", description="Get the weather in a city", parameters=_CITY),
        Tool(name="get_time", description="Get the time in a city", parameters=_CITY),
    )
    """All take one argument, `city`, a string."""

    tool_tokens: ClassVar[int] = 128
    """Enough for one call."""

    def tool_request(self, backend: Backend, **more: Any) -> GenerateRequest:
        """The question with the tools; greedy if the backend can be."""
        greedy: dict[str, Any] = (
            {"temperature": 0.0} if "sampling.temperature" in fields(backend) else {}
        )
        given: dict[str, Any] = {
            "messages": (ChatMessage(role="user", content=self.tool_prompt),),
            "tools": self.offered_tools,
            "sampling": SamplingParams(max_tokens=self.tool_tokens, **greedy),
        }
        return GenerateRequest(**(given | more))

    @on_backend
    async def test_a_required_call_is_made(self, backend: Backend) -> None:
        """`tool_choice` "required": a call of an offered tool, its arguments as its schema says."""
        need(backend, "tools", "tool_choice")
        events = await collect(backend, self.tool_request(backend, **_one(backend)))
        calls = joined(events)
        assert calls
        for call in calls:
            self.check_call(call)
        assert _finished(events).reason == "tool_calls"

    @on_backend
    async def test_the_named_tool_is_called(self, backend: Backend) -> None:
        """`NamedTool`: that one, also if the question is for another."""
        need(backend, "tools", "tool_choice")
        for tool in self.offered_tools:
            more = _one(backend) | {"tool_choice": NamedTool(name=tool.name)}
            calls = joined(await collect(backend, self.tool_request(backend, **more)))
            assert {call.name for call in calls} == {tool.name}
            for call in calls:
                self.check_call(call)

    @on_backend
    async def test_no_call_without_leave(self, backend: Backend) -> None:
        """`tool_choice` "none": no calls, and the same answer as without tools."""
        need(backend, "tools", "tool_choice")
        events = await collect(backend, self.tool_request(backend, tool_choice="none"))
        assert joined(events) == []
        assert _finished(events).reason != "tool_calls"
        if backend.info.capabilities.deterministic and "sampling.temperature" in fields(backend):
            plain = await collect(backend, self.tool_request(backend, tools=()))
            assert _text(events) == _text(plain)

    @on_backend
    async def test_one_call_at_most(self, backend: Backend) -> None:
        """`parallel_tool_calls` false: one call, whether it is forced or free."""
        need(backend, "tools", "tool_choice", "parallel_tool_calls")
        for choice, least in (("required", 1), ("auto", 0)):
            more: dict[str, Any] = {"tool_choice": choice, "parallel_tool_calls": False}
            calls = joined(await collect(backend, self.tool_request(backend, **more)))
            assert least <= len(calls) <= 1

    @on_backend
    async def test_a_free_call_is_no_text(self, backend: Backend) -> None:
        """`Delta`: calls "are no part of `text`"; a finished answer that calls says so."""
        need(backend, "tools")
        events = await collect(backend, self.tool_request(backend))
        calls, end = joined(events), _finished(events)
        if end.reason != "length":
            assert (end.reason == "tool_calls") == bool(calls)
        for call in calls:
            assert call.name in {tool.name for tool in self.offered_tools}
            assert not call.arguments or call.arguments not in _text(events)

    @on_backend
    async def test_ids_are_unique(self, backend: Backend) -> None:
        """`ToolCall.id` tells calls of one conversation apart."""
        need(backend, "tools", "tool_choice")
        ids = [
            call.id
            for _ in range(2)
            for call in joined(await collect(backend, self.tool_request(backend, **_one(backend))))
        ]
        assert len(set(ids)) == len(ids)

    @on_backend
    async def test_all_tokens_are_reported(self, backend: Backend) -> None:
        """`token_ids` "are all tokens that were sampled", those of calls too, and so is usage."""
        need(backend, "tools", "tool_choice")
        request = self.tool_request(backend, **_one(backend))
        events = await collect(backend, request)
        ids = tuple(t for event in _deltas(events) for t in event.token_ids)
        done = events[-1]
        assert isinstance(done, Done)
        assert done.usage.completion_tokens == len(ids)
        if backend.info.capabilities.tokenize:
            written = await backend.detokenize(ids)
            for call in joined(events):
                assert call.arguments in written

    def check_call(self, call: ToolCall) -> None:
        """The name is an offered tool's, and the arguments obey its schema."""
        assert call.id
        assert call.name in {tool.name for tool in self.offered_tools}
        arguments = json.loads(call.arguments)
        assert list(arguments) == ["city"]
        assert isinstance(arguments["city"], str)


def joined(events: list[GenerateEvent], choice: int = 0) -> list[ToolCall]:
    """The calls of a choice, put together; checks the rules of `ToolCallDelta` on the way."""
    calls: list[ToolCall] = []
    for delta in _deltas(events):
        for piece in delta.tool_calls if delta.index == choice else ():
            if piece.index == len(calls):
                assert piece.id, "the first piece of a call has its id"
                assert piece.name, "the first piece of a call has its name"
                calls.append(ToolCall(id=piece.id, name=piece.name, arguments=piece.arguments))
                continue
            assert piece.index < len(calls), "calls are numbered in order"
            assert not piece.id, "a later piece has no id"
            assert not piece.name, "a later piece has no name"
            begun = calls[piece.index]
            calls[piece.index] = ToolCall(
                id=begun.id, name=begun.name, arguments=begun.arguments + piece.arguments
            )
    return calls


def _one(backend: Backend) -> dict[str, Any]:
    """A forced call, and only one if that can be said: a model may go on calling."""
    more: dict[str, Any] = {"tool_choice": "required"}
    if "parallel_tool_calls" in fields(backend):
        more["parallel_tool_calls"] = False
    return more


def _deltas(events: list[GenerateEvent]) -> list[Delta]:
    return [event for event in events if isinstance(event, Delta)]


def _text(events: list[GenerateEvent]) -> str:
    return "".join(delta.text for delta in _deltas(events))


def _finished(events: list[GenerateEvent]) -> Finished:
    return next(event for event in events if isinstance(event, Finished))
